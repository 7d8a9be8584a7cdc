"""`scripts/export_model`: the options of OVMS's export_model.py for embeddings.

The options need nothing but Python, so that `scripts/export_model --help` installs no packages.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from broker.shared.flags import FlagParser, parse_count  # noqa: E402  after the path is set

FORMATS = ("fp32", "fp16", "int8", "int4")
_EPILOG = "Options may be written with dashes or underscores. docs/export.md describes them."


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the options. Exit with status 2 if one is unknown or missing."""
    parser = FlagParser(prog="scripts/export_model", description="Export a model for OVMS and Vecmill.", epilog=_EPILOG)
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    add_options(tasks.add_parser("embeddings_ov", help="export a model for embeddings", epilog=_EPILOG))
    old = tasks.add_parser("embeddings", help="the same; the name before OVMS 2025.2", epilog=_EPILOG)
    add_options(old)
    old.add_argument("--version", help="has no effect: the folder has no versions")
    return parser.parse_args(spell_options(arguments))


def spell_options(arguments: list[str]) -> list[str]:
    """Return arguments with underscores in the names of options, as OVMS writes most of them."""
    spelled: list[str] = []
    for argument in arguments:
        if spelled and spelled[-1] == "--extra_quantization_params":
            # A value that looks like an option.
            spelled[-1] += f"={argument}"
            continue
        name, equals, value = argument.partition("=")
        spelled.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else argument)
    return spelled


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a task."""

    def add(flag: str, text: str, **options: object) -> None:
        default = options.get("default")
        parser.add_argument(flag, help=f"{text} (default: {default})" if default else text, **options)  # type: ignore[arg-type]

    add("--source_model", "model folder, or name of a model on the Hugging Face hub", required=True)
    add("--model_name", "name of the model in the API; default: that on the hub, or the folder's", default="")
    add("--model_repository_path", "folder for the exported models", default=Path("models"), type=Path)
    add(
        "--config_file_path",
        "OVMS's configuration, to which the model is added",
        default=Path("config.json"),
        type=Path,
    )
    add("--weight_format", "how weights are stored", default="int8", choices=FORMATS)
    add("--extra_quantization_params", "options of optimum-cli: --sym, --group-size N, --all-layers", default="")
    add("--pooling", "default: as the model declares", choices=("CLS", "LAST", "MEAN"), type=str.upper, default="")
    add("--force", "export with a --pooling that contradicts the model", action="store_true")
    add("--skip_normalize", "do not scale vectors to length 1", action="store_true")
    add("--truncate", "truncate inputs that are too long", action="store_true")
    add("--target_device", "OpenVINO device", default="CPU")
    add("--num_streams", "parallel inferences on the device", default=1, type=parse_count)
    add("--ov_cache_dir", "folder for models that OpenVINO compiled", default="")
    add("--overwrite_models", "replace the exported model if it exists", action="store_true")
    add("--allow_optimum", "export what Vecmill cannot with optimum-cli, installed into the cache", action="store_true")
    add("--trust_remote_code", "let optimum-cli run code of the model", action="store_true")
    add("--cache", "folder of fetched models", default=ROOT / ".cache" / "vecmill", type=Path)


def main() -> None:
    """Run the command. Exit with status 2 and one sentence if the model cannot be exported."""
    options = parse_arguments(sys.argv[1:])

    from broker.shared.exit import INTERRUPTED_STATUS, exit_refused
    from workers.models.export import ExportOptions, export_model
    from workers.models.json_files import ModelError
    from workers.models.prepare import print_progress

    try:
        folder = export_model(
            ExportOptions(
                source=options.source_model,
                name=options.model_name,
                repository=options.model_repository_path,
                config_path=options.config_file_path,
                weight_format=options.weight_format,
                extra_quantization_params=options.extra_quantization_params,
                pooling=options.pooling,
                normalize=not options.skip_normalize,
                truncate=options.truncate,
                target_device=options.target_device,
                num_streams=options.num_streams,
                ov_cache_dir=options.ov_cache_dir,
                overwrite=options.overwrite_models,
                force=options.force,
                allow_optimum=options.allow_optimum,
                trust_remote_code=options.trust_remote_code,
            ),
            options.cache,
            print_progress,
        )
    except ModelError as error:
        # Errors about a model's folder name the option of a worker.
        exit_refused("", str(error).replace("set --model ", "set --source_model "))
    except KeyboardInterrupt:
        print("vecmill: stopped before the export was complete", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    print(folder)


if __name__ == "__main__":
    main()
