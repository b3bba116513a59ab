"""What an adapter was trained on and how, as a registration gives it."""

from __future__ import annotations

from pydantic import ValidationError

from app.kit.problems import FieldError, invalid_field, invalid_fields
from app.methods import Recipe

MAX_RECIPE_BYTES = 16 * 1024


def parse_recipe(training_set: str | None, recipe: str | None) -> Recipe | None:
    """The recipe of a registration; None where it brings no training set.

    Raises:
        Invalid: one of the two is missing, or the recipe is not one.
    """
    if (training_set is None) != (recipe is None):
        missing = "recipe" if recipe is None else "training_set"
        raise invalid_field(f"/{missing}", "is needed: a training set and its recipe come together")
    if recipe is None:
        return None
    try:
        return Recipe.model_validate_json(recipe)
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False, include_context=False)
        raise invalid_fields(
            [FieldError("/".join(("/recipe", *map(str, item["loc"]))), str(item["msg"])) for item in items]
        ) from None
