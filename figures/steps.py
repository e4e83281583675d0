"""What figures/make.py runs: the steps of each preset, in order."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from figures import sweep

HOUR = 3600
# Of a cell of Section 5's grid, two cores: seconds per epoch with one pair per step, and with ten, by d.
EPOCH = {0: (0.5, 2.6), 1: (2.0, 13.6), 2: (2.2, 14.4)}


@dataclass(frozen=True)
class Step:
    """One run of a script. `command` may name the folder of an earlier step as {name}, and its own as {self}."""

    name: str  # of its result in results/
    command: str
    seconds: float  # wall time on two cores, roughly; measured with AVX2 for quick, from timed steps for report
    needs: tuple[str, ...] = ()  # steps that it goes on from
    resume: bool = True  # whether the script has --resume


def grid(options: sweep.Options) -> Iterator[Step]:
    """A step for every cell."""
    for name, cell in sweep.cells(options).items():
        one, ten = EPOCH[cell["decoder_layers"]]
        seconds = cell["epochs"] * one + cell["fine_epochs"] * ten
        yield Step(f"hashing/{name}", f"{shlex.join(sweep.command(cell))} --out {{self}}", seconds)


BEST_HELD_OUT = (  # `hashing.py best` on nine tenths of the training documents, without --refine and --last
    "hashing.py --epochs 130 --fine-epochs 70 --pairs 1 --lr 3e-3 --weight-decay 1e-3 --word-dropout 0.5 "
    "--average 0.998 --prior autoregressive --held-out 0.1"
)
PARTS = {
    "full": "",
    "dropout": "--word-dropout 0",
    "decay": "--weight-decay 0",
    "average": "--average 0",
    "prior": "--prior uniform",
    "rate": "--lr 1e-3",
}
DEEP = "--likelihood-epochs 60 --encoder-epochs 40 --joint-epochs 40 --scratch-epochs 60"
GRIDS = (
    sweep.Options(),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0,), estimators=("arm", "reinforce"), seeds=(1, 2, 3)),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0,), seeds=(2, 3)),
    sweep.Options(encoders=("e1", "e3", "e4"), bits=(8, 16), decoder_layers=(0,), seeds=(2, 3)),
    sweep.Options(encoders=("e1",), held_out=(0.1,)),
    sweep.Options(encoders=("e3",), encoder_lr=0.1),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0, 1), encoder_lr=0.01),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0,), encoder_lr=0.003),
    sweep.Options(encoders=("e2",), bits=(64,), decoder_layers=(0,), encoder_lr=0.01),
)
QUICK_GRID = sweep.Options(
    encoders=("e1", "e3", "e4"), bits=(8,), decoder_layers=(0,), corpus="docstrings", epochs=20, fine_epochs=0
)
ENCODER = "celeba_encoder.py --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}"


# Section 4 on drawn faces, with encoders fitted more or less well, and without.
FACES = "celeba_joint.py quick --schedule falling --precision float32"
ARM = f"{FACES} --lr 4e-4 --iterations 500 --evidence-images 256"
FITS = {"encoder": ("faces/fit_4000", 8), "encoder_1000": ("faces/fit_1000", 20)}  # and how often to track


def inference() -> Iterator[Step]:
    """The ground truth, the encoders, and joint training from there."""
    yield Step("faces/dcgan", "dcgan.py quick --epochs 30 --out {self}", 250)
    options = "--sigma 0.5 --iterations 3000 --precision float32 --ground-truth {faces/dcgan}/ground_truth.pt"
    yield Step("faces/encoder", f"celeba_encoder.py quick {options} --out {{self}}", 300, needs=("faces/dcgan",))
    fitted = f"{FACES} --freeze-decoder --lr 1e-3 --evidence-images 0 --track 2"
    start = "--encoder {faces/encoder}/model.pt --out {self}"
    for n in (1000, 4000):
        yield Step(f"faces/fit_{n}", f"{fitted} --iterations {n} {start}", 0.2 * n, needs=("faces/encoder",))
    for name, (fit, track) in FITS.items():
        options = f"--evidence-samples 60 --track {track} --encoder {{{fit}}}/model.pt --out {{self}}"
        yield Step(f"inference/{name}", f"{ARM} {options}", 800, needs=(fit,))
    for kind in ("factorized", "full"):
        options = f"--inference {kind} --evidence-samples 100 --sigma 0.5 --track 5 {start}"
        yield Step(f"inference/{kind}", f"{ARM} {options}", 1500, needs=("faces/encoder",))


def joint(name: str, encoder: str, options: str) -> Step:
    command = f"celeba_joint.py --encoder {{celeba/{encoder}}}/model.pt {options} --out {{self}}"
    return Step(f"celeba/{name}", command, 114 * HOUR, needs=(f"celeba/{encoder}",))


STEPS = {
    "quick": (
        Step("mixture", "mixture.py quick --out {self}", 45),
        Step("disarm", "disarm.py --out {self}", 16, resume=False),
        Step("celeba/dcgan", "dcgan.py quick --out {self}", 91),
        Step(
            "celeba/encoder_report",
            "celeba_encoder.py quick --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}",
            71,
            needs=("celeba/dcgan",),
        ),
        Step(
            "celeba/joint_report",
            "celeba_joint.py quick --encoder {celeba/encoder_report}/model.pt --out {self}",
            81,
            needs=("celeba/encoder_report",),
        ),
        *(
            Step(
                f"inference/{kind}",
                f"{FACES} --inference {kind} --sigma 0.5 --lr 1e-3 --iterations 40 --batch-size 16 "
                "--track 2 --encoder {celeba/encoder_report}/model.pt --out {self}",
                46,
                needs=("celeba/encoder_report",),
            )
            for kind in ("factorized", "full")
        ),
        *grid(QUICK_GRID),
        Step(
            "exact_d0",
            "hashing.py exact --corpus docstrings --encoders e1 --bits 6 --likelihood-epochs 20 --encoder-epochs 10 "
            "--joint-epochs 20 --scratch-epochs 20 --out {self}",
            79,
        ),
    ),
    "report": (
        Step("mixture", "mixture.py --out {self}", 240),
        Step("mixture_released", "mixture.py --points-per-component 2000 --joint-lr 1e-4 --out {self}", 720),
        Step("disarm", "disarm.py --out {self}", 10, resume=False),
        Step("exact_d0", "hashing.py exact --out {self}", 1.5 * HOUR),
        Step("exact_d1", f"hashing.py exact --decoder-layers 1 {DEEP} --out {{self}}", HOUR),
        Step("exact_d2", f"hashing.py exact --decoder-layers 2 {DEEP} --out {{self}}", HOUR),
        Step(
            "exact_long",
            "hashing.py exact --encoders e1 --decoder-layers 2 --likelihood-epochs 60 --encoder-epochs 200 "
            "--joint-epochs 40 --scratch-epochs 1 --out {self}",
            HOUR / 2,
        ),
        Step("exact_richer_d0", "hashing.py exact --encoders a1 --out {self}", 0.4 * HOUR),
        Step("exact_richer_d1", f"hashing.py exact --encoders a1 --decoder-layers 1 {DEEP} --out {{self}}", HOUR / 3),
        Step("exact_seed2_d0", "hashing.py exact --encoders e1 --seed 2 --out {self}", 0.6 * HOUR),
        *(
            Step(
                f"exact_seed2_d{layers}",
                f"hashing.py exact --encoders e1 --decoder-layers {layers} {DEEP} --seed 2 --out {{self}}",
                HOUR / 3,
            )
            for layers in (1, 2)
        ),
        *(Step(f"best_seed{i}", f"hashing.py best --seed {i} --out {{self}}", 800) for i in (1, 2, 3)),
        *(Step(f"parts/{name}", f"{BEST_HELD_OUT} {option} --out {{self}}", 300) for name, option in PARTS.items()),
        *(step for options in GRIDS for step in grid(options)),
        Step("celeba/dcgan", "dcgan.py --out {self}", 25 * HOUR),
        Step("celeba/encoder_report", ENCODER, 68 * HOUR, needs=("celeba/dcgan",)),
        Step("celeba/encoder_released", f"{ENCODER} --protocol released", 68 * HOUR, needs=("celeba/dcgan",)),
        joint("joint_report", "encoder_report", ""),
        joint("elbo_report", "encoder_report", "--freeze-decoder"),
        joint("joint_report_sigma", "encoder_report", "--learn-sigma"),
        joint("joint_released", "encoder_released", ""),
        *inference(),
    ),
}
