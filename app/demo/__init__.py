"""`lethe demo`: the real service on made-up records, its result measured again from outside."""
