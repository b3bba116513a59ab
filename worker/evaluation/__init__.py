"""What a model still knows: metrics, evaluation of record sets, and the gate. A pure library."""
