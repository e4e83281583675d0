"""What figures/make.py runs: the steps of each preset, in order."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from figures import sweep

HOUR = 3600
# Of a cell of Section 5's grid, two cores: seconds per epoch with one pair per step, and with ten,
# by d.
EPOCH = {0: (0.5, 2.6), 1: (2.0, 13.6), 2: (2.2, 14.4)}


@dataclass(frozen=True)
class Step:
    """One run of a script. `command` may name the folder of an earlier step as {name}, and its own
    as {self}."""

    name: str  # of its result in results/
    command: str
    seconds: float  # wall time on two cores, roughly; measured with AVX2 for quick, from timed steps for report
    needs: tuple[str, ...] = ()  # steps that it goes on from
    resume: bool = True  # whether the script has --resume


def grid(options: sweep.Options) -> Iterator[Step]:
    """A step for every cell."""
    for name, cell in sweep.cells(options).items():
        one, ten = EPOCH[cell["decoder_layers"]]
        ten = one if cell["bits"] == 8 else ten  # 256 codes at most, each decoded once
        seconds = cell["epochs"] * one + cell["fine_epochs"] * ten
        yield Step(f"hashing/{name}", f"{shlex.join(sweep.command(cell))} --out {{self}}", seconds)


BEST_HELD_OUT = (  # `hashing.py best` on nine tenths of the training documents, without --refine and --last
    "hashing.py --epochs 130 --fine-epochs 70 --pairs 1 --lr 3e-3 --weight-decay 1e-3 "
    "--word-dropout 0.5 --average 0.998 --prior autoregressive --held-out 0.1"
)
PARTS = {
    "full": "",
    "dropout": "--word-dropout 0",
    "decay": "--weight-decay 0",
    "average": "--average 0",
    "prior": "--prior uniform",
    "rate": "--lr 1e-3",
}
# Of `hashing.py exact` with hidden layers; the number of epochs from scratch follows.
DEEP = "--likelihood-epochs 60 --encoder-epochs 40 --joint-epochs 40 --scratch-epochs"
GRIDS = (
    sweep.Options(),
    sweep.Options(
        encoders=("e1",),
        bits=(64,),
        decoder_layers=(0,),
        estimators=("arm", "reinforce"),
        seeds=(1, 2, 3),
    ),
    sweep.Options(encoders=("e1", "e4"), bits=(64,), decoder_layers=(0, 1), seeds=(2, 3)),
    sweep.Options(encoders=("e1", "e4"), bits=(8,), decoder_layers=(1,), seeds=(2, 3)),
    sweep.Options(encoders=("e1", "e3", "e4"), bits=(8, 16), decoder_layers=(0,), seeds=(2, 3)),
    sweep.Options(encoders=("e2",), bits=(8,), decoder_layers=(0,), seeds=(2, 3)),
    sweep.Options(encoders=("e2",), bits=(16,), decoder_layers=(0,), seeds=(2,)),
    sweep.Options(encoders=("e1",), held_out=(0.1,)),
    sweep.Options(encoders=("e2", "e3", "e4"), bits=(64,), decoder_layers=(0,), held_out=(0.1,)),
    sweep.Options(encoders=("e3",), encoder_lr=0.1),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0, 1), encoder_lr=0.01),
    sweep.Options(encoders=("e1",), bits=(64,), decoder_layers=(0,), encoder_lr=0.003),
    sweep.Options(encoders=("e2",), bits=(64,), decoder_layers=(0,), encoder_lr=0.01),
)
QUICK_GRID = sweep.Options(
    encoders=("e1", "e3", "e4"),
    bits=(8,),
    decoder_layers=(0,),
    corpus="docstrings",
    epochs=20,
    fine_epochs=0,
)
ENCODER = "celeba_encoder.py --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}"


# Section 4 with encoders fitted more or less well, and without: on drawn faces, and on photographs.
FACES = "celeba_joint.py quick --schedule falling --precision float32"
ARM = f"{FACES} --lr 4e-4 --evidence-images 256"
LENGTH = "--iterations 600"
FIT = f"{FACES} --freeze-decoder --lr 1e-3 --evidence-images 0 --track 2"
FITS = {
    "encoder": "faces/fit_4000",
    "encoder_1000": "faces/fit_1000",
    "encoder_log_q": "faces/encoder",
}
FACES_GAN = "dcgan.py quick --epochs 30"
PHOTOS_GAN = "dcgan.py --ngf 16 --ndf 16 --nz 16 --epochs 50 --held-out 500 --features thumbnails"

PLANES = {  # Section 4 in miniature, solved
    **{f"own_seed{i}": f"--seed {i}" for i in range(3)},
    **{f"encoder{hidden}_seed0": f"--encoder {hidden} --sigmas 0.6" for hidden in (0, 4, 16, 64)},
    "full_seed0": "--family full --sigmas 0.6",
    "wide_seed0": "--hidden 4 --points 300 --sigmas 0.6",
}


def inference() -> Iterator[Step]:
    """For each seed of drawn faces, and for photographs: ground truth, encoders, and joint training
    from there."""
    for where, gan, seed in (
        *(("faces", FACES_GAN, i) for i in range(3)),
        ("photos", PHOTOS_GAN, 0),
    ):
        of_seed, end = (f" --seed {seed}", f"_seed{seed}") if seed else ("", "")
        prefix, track = ("", "6") if where == "faces" else ("photos_", "4 --fid-dims 768")
        truth, encoder = f"{where}/dcgan{end}", f"{where}/encoder{end}"
        yield Step(truth, f"{gan}{of_seed} --out {{self}}", 1000 if prefix else 200)
        options = f"--sigma 0.5 --iterations 3000 --precision float32 --ground-truth {{{truth}}}/ground_truth.pt"
        yield Step(
            encoder,
            f"celeba_encoder.py quick {options}{of_seed} --out {{self}}",
            300,
            needs=(truth,),
        )

        def arm(name: str, options: str, fit: str, seconds: float, of_seed: str = of_seed) -> Step:
            command = f"{ARM} {options}{of_seed} --encoder {{{fit}}}/model.pt --out {{self}}"
            return Step(f"inference/{name}", command, seconds, needs=(fit,))

        first = encoder == "faces/encoder"
        for kind, weight in (("factorized", 1), ("full", 0)):
            yield arm(
                f"{prefix}{kind}{end}",
                f"--weight {weight} --sigma 0.5 {LENGTH} --track {track}",
                encoder,
                1000,
            )
            for sigma in (0.2, 1) if first else ():
                options = f"--weight {weight} --sigma {sigma} --iterations 400 --track 4"
                yield arm(f"{kind}_sigma{sigma}", options, encoder, 700)
        for n in (1000, 4000) if first else (1000,):
            command = (
                f"{FIT} --iterations {n}{of_seed} --encoder {{{encoder}}}/model.pt --out {{self}}"
            )
            yield Step(f"{where}/fit_{n}{end}", command, 0.1 * n, needs=(encoder,))
        if first:
            for name, fit in FITS.items():
                points = 5 if name == "encoder_log_q" else 20
                yield arm(name, f"--evidence-samples 60 {LENGTH} --track {points}", fit, 800)
            wide = f"--evidence-samples 60 {LENGTH} --track 5 --batch-size 128"
            yield arm("encoder_1000_batch128", wide, FITS["encoder_1000"], 400)
        else:
            options = f"--evidence-samples 60 {LENGTH} --track 4"
            yield arm(f"{prefix}encoder_1000{end}", options, f"{where}/fit_1000{end}", 300)


def longer() -> Iterator[Step]:
    """Twice the steps, on images whose noise comes in opposite pairs and of averaged weights, from
    a shorter GAN."""
    yield Step("faces/dcgan_short", "dcgan.py quick --out {self}", 90)
    options = "--sigma 0.5 --iterations 1000 --precision float32 --ground-truth {faces/dcgan_short}/ground_truth.pt"
    yield Step(
        "faces/encoder_short",
        f"celeba_encoder.py quick {options} --out {{self}}",
        100,
        needs=("faces/dcgan_short",),
    )
    options = "--lr 5e-4 --average 0.99 --batch-size 32 --reuse 2 --evidence-images 128 --evidence-samples 60 --sigma 0.5"
    for name, weight in (("factorized", 1), ("full", 0)):
        command = f"{FACES} {options} --iterations 1200 --track 4 --weight {weight}"
        command += " --encoder {faces/encoder_short}/model.pt --out {self}"
        yield Step(f"inference/{name}_long", command, 900, needs=("faces/encoder_short",))


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
                f"{FACES} --weight {weight} --sigma 0.5 --lr 1e-3 --iterations 40 --batch-size 16 "
                "--track 2 --encoder {celeba/encoder_report}/model.pt --out {self}",
                46,
                needs=("celeba/encoder_report",),
            )
            for kind, weight in (("factorized", 1), ("full", 0))
        ),
        Step("plane", "celeba_joint.py plane --sigmas 0.8 --weights 6 --out {self}", 30),
        Step(
            "lengths",
            "hashing.py lengths --corpus docstrings --lengths 4 16 --weights 4 --documents 500 "
            "--out {self}",
            30,
        ),
        *grid(QUICK_GRID),
        Step(
            "exact_d0",
            "hashing.py exact --corpus docstrings --encoders e1 --bits 6 --likelihood-epochs 20 "
            "--encoder-epochs 10 --joint-epochs 20 --scratch-epochs 20 --out {self}",
            79,
        ),
    ),
    "report": (
        Step("mixture", "mixture.py --out {self}", 240),
        *(
            Step(
                f"mixture_seed{i}",
                f"mixture.py --seed {i} --variances 1 --trained-variances 1 --out {{self}}",
                200,
            )
            for i in (1, 2)
        ),
        Step(
            "mixture_released",
            "mixture.py --points-per-component 2000 --joint-lr 1e-4 --out {self}",
            720,
        ),
        Step("disarm", "disarm.py --out {self}", 10, resume=False),
        Step("exact_d0", "hashing.py exact --out {self}", 1.5 * HOUR),
        Step("exact_d1", f"hashing.py exact --decoder-layers 1 {DEEP} 60 --out {{self}}", HOUR),
        Step("exact_d2", f"hashing.py exact --decoder-layers 2 {DEEP} 60 --out {{self}}", HOUR),
        Step(
            "exact_long",
            "hashing.py exact --encoders e1 --decoder-layers 2 --likelihood-epochs 60 "
            "--encoder-epochs 200 --joint-epochs 40 --scratch-epochs 1 --out {self}",
            HOUR / 2,
        ),
        Step("exact_richer_d0", "hashing.py exact --encoders a1 --out {self}", 0.4 * HOUR),
        Step(
            "exact_richer_d1",
            f"hashing.py exact --encoders a1 --decoder-layers 1 {DEEP} 60 --out {{self}}",
            1200,
        ),
        *(
            Step(
                f"exact_seed{i}_d{layers}",
                f"hashing.py exact --encoders {encoders if layers < 2 else 'e1'} --seed {i} "
                f"{depth} --out {{self}}",
                HOUR * 2 / 3,
            )
            for i, encoders in ((2, "e1"), (3, "e1 e3"))
            for layers, depth in enumerate(
                ("", f"--decoder-layers 1 {DEEP} 60", f"--decoder-layers 2 {DEEP} 60")
            )
        ),
        *(
            Step(
                f"exact_seed2_e3_{name}",
                f"hashing.py exact --encoders e3 --seed 2 {depth} 1 --out {{self}}",
                1800,
            )
            for name, depth in (("d0", "--scratch-epochs"), ("d1", f"--decoder-layers 1 {DEEP}"))
        ),
        *(
            Step(f"best_seed{i}", f"hashing.py best --seed {i} --out {{self}}", 800)
            for i in (1, 2, 3)
        ),
        *(
            Step(f"parts/{name}", f"{BEST_HELD_OUT} {option} --out {{self}}", 300)
            for name, option in PARTS.items()
        ),
        *(step for options in GRIDS for step in grid(options)),
        *(
            Step(
                f"lengths/{d}_seed{i}",
                f"hashing.py lengths --decoder {d} --seed {i} --out {{self}}",
                600,
            )
            for i in (1, 2, 3)
            for d in ("free", "linear")
        ),
        *(
            Step(f"plane/{name}", f"celeba_joint.py plane {options} --out {{self}}", 200)
            for name, options in PLANES.items()
        ),
        Step("celeba/dcgan", "dcgan.py --out {self}", 25 * HOUR),
        Step("celeba/encoder_report", ENCODER, 68 * HOUR, needs=("celeba/dcgan",)),
        Step(
            "celeba/encoder_released",
            f"{ENCODER} --protocol released",
            68 * HOUR,
            needs=("celeba/dcgan",),
        ),
        joint("joint_report", "encoder_report", ""),
        joint("elbo_report", "encoder_report", "--freeze-decoder"),
        joint("joint_report_sigma", "encoder_report", "--learn-sigma"),
        joint("joint_released", "encoder_released", ""),
        *inference(),
        *longer(),
    ),
}
