"""Pushing a folder to the model hub, with the account that `hf auth login` (or HF_TOKEN) has set up."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from rlhf.core.errors import ConfigError
from rlhf.core.validation import one_line


def push(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload the folder's files as one commit and return the address. Pushing the same files again changes nothing.

    Raises ConfigError when the hub cannot be reached or refuses, and for a repository that everybody can see while
    `public` is False.
    """
    api = HfApi()
    try:
        if api.repo_exists(repository):
            if not public and not api.repo_info(repository).private:
                raise ConfigError(
                    f"--push-to {repository}: is public; push there with --public, or to another name"
                )
        else:
            api.create_repo(repository, private=not public)
        found = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"--push-to {repository}: no account; log in with `hf auth login`") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"--push-to {repository}: the hub is switched off (HF_HUB_OFFLINE)") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(f"--push-to {repository}: {one_line(str(error))[:300]}") from error
    return str(found.commit_url)
