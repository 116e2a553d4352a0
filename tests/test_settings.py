"""The one reader of the environment."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from trellis_runtime.errors import SetupFailed
from trellis_runtime.settings import VARIABLES, Settings

BUCKET = {
    "BUCKET_ENDPOINT_URL": "http://s3",
    "BUCKET_ACCESS_KEY_ID": "id",
    "BUCKET_SECRET_ACCESS_KEY": "very-secret",
    "BUCKET_NAME": "models",
}


def test_an_empty_environment_is_usable() -> None:
    settings = Settings.from_env({})
    assert settings.jobs.max_concurrent == 1
    assert not settings.bucket.is_configured
    assert not settings.platform.is_worker


def test_every_problem_is_reported_at_once_with_its_name_and_value() -> None:
    with pytest.raises(SetupFailed) as caught:
        Settings.from_env(
            {
                "TRELLIS2_MAX_IMAGE_BYTES": "ten",
                "TRELLIS2_JOB_TIMEOUT_S": "-1",
                "TRELLIS2_ENGIN": "x",
            }
        )
    message = caught.value.message
    assert "TRELLIS2_MAX_IMAGE_BYTES has value 'ten'" in message
    assert "TRELLIS2_JOB_TIMEOUT_S has value '-1'" in message
    assert "TRELLIS2_ENGIN is not a variable" in message


@pytest.mark.parametrize("absent", list(BUCKET))
def test_a_half_set_bucket_fails_at_start(absent: str) -> None:
    half = {name: value for name, value in BUCKET.items() if name != absent}
    with pytest.raises(SetupFailed, match=f"{absent} missing") as caught:
        Settings.from_env(half)
    assert "very-secret" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    shown = repr(Settings.from_env(BUCKET))
    assert "very-secret" not in shown


def test_the_settings_page_names_every_variable() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for name in VARIABLES:
        assert f"`{name}`" in page
