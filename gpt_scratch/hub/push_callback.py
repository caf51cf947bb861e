"""`--push_to_hub` of the training scripts: complete repositories only, and this package's card.

Trainer itself would also upload `training_args.bin`, a pickle with this machine's paths; the checkpoints that it uploads during training
lack the model's code, so that nobody could load them; and its automatic card would replace ours.
"""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..errors import UserError
from .cards import name_repository
from .contents import Contents, list_contents, missing_parts, shown
from .secret_rules import scanner
from .secret_scan import find_secrets
from .upload import Repository, Upload, open_repository, upload, verify_outputs


class PushToHub(TrainerCallback):
    """Uploads the whole output directory at the end ([`finish`]), and each checkpoint if `args.hub_strategy` is "every_save".

    Created by [`take_over_push`]. `hub_model_id`, `hub_private_repo`, `hub_revision` and `hub_token` have Trainer's meaning;
    `hub_strategy` must be "end" or "every_save".

    Args:
        wanted: whether to upload at all.

    Raises:
        UserError: the upload would fail after training: not logged in, no permission, no network, or the secret scanner is not
            installed.
    """

    def __init__(self, args: TrainingArguments, wanted: bool):
        self.repository: Repository | None = None
        if not wanted:
            return
        if args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise UserError(f"--hub_strategy {args.hub_strategy.value} would upload the optimizer: choose end or every_save")
        self.token, self.every_save = args.hub_token, args.hub_strategy == HubStrategy.EVERY_SAVE
        self.output_dir = args.output_dir
        if args.process_index == 0:
            scanner()  # raises before training if it is not installed
            name = args.hub_model_id or Path(args.output_dir).resolve().name
            self.repository = open_repository(name, args.hub_private_repo, args.hub_revision or "main", self.token)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Upload a checkpoint. A failure is reported, and training continues."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # Not for an adapter: its files would later lie next to the merged model's, and be loaded instead.
        if self.repository is None or not self.every_save or not (folder / "config.json").is_file():
            return
        try:
            self._upload(list_contents(folder, exclude=("trainer_state.json",)), f"Step {state.global_step}")
        except UserError as error:
            print(f"warning: step {state.global_step} was not uploaded: {error}")

    def finish(self) -> Upload | None:
        """Verify the complete output directory and upload it; `None` if pushing was not requested.

        Raises:
            UserError: verification or upload failed; the message says that everything is saved, and how to upload it.
        """
        if self.repository is None:
            return None
        try:
            contents = list_contents(self.output_dir)
            for note in missing_parts(contents):
                print(f"note: {note}")
            verify_outputs(contents)
            name_repository(self.output_dir, self.repository.id)
            uploaded = self._upload(contents, "End of training")
        except UserError as error:
            again = f"python scripts/push_to_hub.py {self.output_dir} {self.repository.id} --update"
            raise UserError(f"everything is in {self.output_dir}, but was not uploaded: {error}; then: {again}") from error
        print(f"uploaded to {shown(uploaded.url)}")
        return uploaded

    def _upload(self, contents: Contents, message: str) -> Upload:
        assert self.repository is not None  # ensured by the callers
        findings = find_secrets(contents).findings
        if findings:
            raise UserError(f"found {findings[0]}")
        return upload(contents, self.repository, message, self.token, update=True)


def take_over_push(args: TrainingArguments) -> PushToHub:
    """Return the callback that pushes in Trainer's place, and clear `args.push_to_hub`, since Trainer would push as well."""
    wanted, args.push_to_hub = args.push_to_hub, False
    return PushToHub(args, wanted)
