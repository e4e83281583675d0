"""What figures/make.py runs: the steps of each preset, by section, in order."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HOUR = 3600.0
# Of a cell of Section 5's grid on two cores: seconds per epoch with one pair of samples per step,
# and with ten, by d.
EPOCH = {0: (0.5, 2.6), 1: (2.0, 13.6), 2: (2.2, 14.4)}
EPOCHS, FINE_EPOCHS = 1000, 500


@dataclass(frozen=True)
class Step:
    """One run of a script.

    In `command`, {name} stands for the folder of an earlier step and {self} for its own. `seconds`
    is the wall time, roughly: for quick measured on one core with AVX2, for report from timed
    steps on two with AVX-512 and bfloat16.
    """

    section: int
    name: str
    command: str
    seconds: float
    resume: bool = True  # whether the script has --resume

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that it goes on from."""
        return tuple(name for name in re.findall(r"\{(.+?)\}", self.command) if name != "self")

    @property
    def result(self) -> str:
        """Where its result stands below results/."""
        return f"section{self.section}/{self.name}.json"


def celeba() -> Iterator[Step]:
    """Table 1: the report's two protocols, the control, and a learned sigma."""
    encoder = "celeba_encoder.py --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}"
    yield Step(4, "celeba/dcgan", "dcgan.py --out {self}", 25 * HOUR)
    for protocol in ("report", "released"):
        name, command = f"celeba/encoder_{protocol}", f"{encoder} --protocol {protocol}"
        yield Step(4, name, command, 68 * HOUR)
    for name, fitted, options in (
        ("joint_report", "encoder_report", ""),
        ("elbo_report", "encoder_report", "--freeze-decoder"),
        ("joint_report_sigma", "encoder_report", "--learn-sigma"),
        ("joint_released", "encoder_released", ""),
    ):
        command = f"celeba_joint.py --encoder {{celeba/{fitted}}}/model.pt {options} --out {{self}}"
        yield Step(4, f"celeba/{name}", command, 114 * HOUR)


MEASURED = "--test-images 2000 --laplace-images 16 --fid-images 2000"
MEASURED += " --track-images 500 --precision float32"
FITTING = f"celeba_encoder.py quick --track 4 {MEASURED}"
FACES = f"celeba_joint.py quick --schedule falling {MEASURED}"
FACES_GAN = "dcgan.py quick --epochs 30"
PHOTOS_GAN = "dcgan.py --ngf 16 --ndf 16 --nz 16 --epochs 50 --held-out 500 --features thumbnails"


def inference() -> Iterator[Step]:
    """For each seed of drawn faces, and for photographs: ground truth, encoders, and joint training
    from there, with an encoder or with the best Gaussians in its place.
    """
    arm, length = f"{FACES} --lr 4e-4 --evidence-images 256", "--iterations 600"
    fit = f"{FACES} --freeze-decoder --lr 1e-3 --evidence-images 0 --track 2"
    places = (*(("faces", FACES_GAN, i) for i in range(3)), ("photos", PHOTOS_GAN, 0))
    for where, gan, seed in places:
        of_seed, end = (f" --seed {seed}", f"_seed{seed}") if seed else ("", "")
        prefix, track = ("", "6") if where == "faces" else ("photos_", "4 --fid-dims 768")
        truth, encoder = f"{where}/dcgan{end}", f"{where}/encoder{end}"
        yield Step(4, truth, f"{gan}{of_seed} --out {{self}}", 1000 if prefix else 200)
        command = f"{FITTING} --sigma 0.5 --iterations 3000"
        command += f" --ground-truth {{{truth}}}/ground_truth.pt{of_seed} --out {{self}}"
        yield Step(4, encoder, command, 300)

        def joint(
            name: str, options: str, fitted: str, seconds: float, of_seed: str = of_seed
        ) -> Step:
            command = f"{arm} {options}{of_seed} --encoder {{{fitted}}}/model.pt --out {{self}}"
            return Step(4, f"inference/{name}", command, seconds)

        first = encoder == "faces/encoder"
        for kind, weight in (("factorized", 1), ("full", 0)):
            options = f"--weight {weight} --sigma 0.5 {length} --track {track}"
            yield joint(f"{prefix}{kind}{end}", options, encoder, 1000)
        for n in (1000, 4000) if first else (1000,):
            command = f"{fit} --iterations {n}{of_seed} --encoder {{{encoder}}}/model.pt"
            name = f"{where}/fit_{n}{end}"
            yield Step(4, name, f"{command} --out {{self}}", 0.1 * n)
        few = f"--evidence-samples 60 {length} --track"
        if first:
            yield joint("encoder", f"{few} 20", "faces/fit_4000", 800)
            yield joint("encoder_1000", f"{few} 20", "faces/fit_1000", 800)
            yield joint("encoder_log_q", f"{few} 5", "faces/encoder", 800)
            wide = f"{few} 5 --batch-size 128"
            yield joint("encoder_1000_batch128", wide, "faces/fit_1000", 400)
        else:
            yield joint(f"{prefix}encoder_1000{end}", f"{few} 4", f"{where}/fit_1000{end}", 300)


def settled() -> Iterator[Step]:
    """Twice the steps, eight seeds, a shorter GAN: noise in opposite pairs, averaged weights. Other
    sigmas for one seed.
    """
    options = "--lr 5e-4 --average 0.99 --batch-size 32 --reuse 2"
    length = "--track 4 --evidence-images 128 --evidence-samples 60 --iterations 1200"
    for seed in range(8):
        truth, encoder = f"faces/dcgan_short_seed{seed}", f"faces/encoder_short_seed{seed}"
        yield Step(4, truth, f"dcgan.py quick --epochs 9 --seed {seed} --out {{self}}", 90)
        command = f"{FITTING} --sigma 0.5 --iterations 1000"
        command += f" --ground-truth {{{truth}}}/ground_truth.pt --seed {seed} --out {{self}}"
        yield Step(4, encoder, command, 100)
        arms = (("factorized", 1), ("full", 0))
        for sigma, (name, weight) in itertools.product((0.5, 1, 0.2) if not seed else (0.5,), arms):
            command = f"{FACES} {options} --sigma {sigma} {length} --weight {weight} --seed {seed}"
            command += f" --encoder {{{encoder}}}/model.pt --out {{self}}"
            name += "_long" if sigma == 0.5 else f"_long_sigma{sigma}"
            yield Step(4, f"inference/{name}_seed{seed}", command, 900)


def planes() -> Iterator[Step]:
    """Section 4 in miniature, solved."""
    for name, options in {
        **{f"own_seed{i}": f"--seed {i}" for i in range(3)},
        **{f"encoder{n}_seed0": f"--encoder {n} --sigmas 0.6" for n in (0, 4, 16, 64)},
        "full_seed0": "--family full --sigmas 0.6",
        "wide_seed0": "--hidden 4 --points 300 --sigmas 0.6",
    }.items():
        yield Step(4, f"plane/{name}", f"celeba_joint.py plane {options} --out {{self}}", 200)


def grid(
    encoders: Sequence[str] = ("e1", "e2", "e3", "e4"),
    bits: Sequence[int] = (64, 8, 16, 32),
    layers: Sequence[int] = (0, 1, 2),
    estimators: Sequence[str] = ("disarm",),
    seeds: Sequence[int] = (1,),
    held_out: float = 0.0,
    encoder_lr: float | None = None,
    epochs: tuple[int, int] = (EPOCHS, FINE_EPOCHS),
    options: str = "",
) -> Iterator[Step]:
    """A step for every cell of Tables 2 and 3, named such as hashing/e1_b64_d0, with what differs
    from the report's protocol after it. epochs: with one pair of samples per step, and with ten.

    Frequency encoders are tested with counts too, as the released code does.
    """
    axes = (layers, bits, estimators, seeds, encoders)
    for d, b, estimator, seed, encoder in itertools.product(*axes):
        name = f"{encoder}_b{b}_d{d}" + f"_{estimator}" * (estimator != "disarm")
        name += f"_seed{seed}" * (seed != 1) + f"_heldout{held_out:g}" * bool(held_out)
        name += f"_lr{encoder_lr:g}" if encoder_lr else ""
        command = f"hashing.py --encoder {encoder} --bits {b} --decoder-layers {d}"
        command += f" --estimator {estimator} --seed {seed} --held-out {held_out:g}"
        command += f" --epochs {epochs[0]} --fine-epochs {epochs[1]} {options}"
        command += f" --encoder-lr {encoder_lr:g}" if encoder_lr else ""
        command += " --test-counts" if encoder in ("e2", "e3") else ""
        one, ten = EPOCH[d]
        ten = one if b == 8 else ten  # 256 codes at most, each decoded once
        seconds = epochs[0] * one + epochs[1] * ten
        yield Step(5, f"hashing/{name}", f"{command} --out {{self}}", seconds)


def grids() -> Iterator[Step]:
    """Tables 2 and 3, and the cells with other seeds, estimators, rates and selections."""
    small, counts = (8, 16), ("e1", "e3", "e4")
    yield from grid()
    yield from grid(("e1",), (64,), (0,), estimators=("arm", "reinforce"), seeds=(1, 2, 3))
    yield from grid(("e1", "e4"), (64,), (0, 1), seeds=(2, 3))
    yield from grid(("e1", "e4"), (8,), (1,), seeds=(2, 3))
    yield from grid(counts, small, (0,), seeds=(2, 3))
    yield from grid(("e2",), (8,), (0,), seeds=(2, 3))
    yield from grid(("e2",), (16,), (0,), seeds=(2,))
    yield from grid(("e1",), held_out=0.1)
    yield from grid(("e2", "e3", "e4"), (64,), (0,), held_out=0.1)
    yield from grid(("e3",), encoder_lr=0.1)
    yield from grid(("e1",), (64,), (0, 1), encoder_lr=0.01)
    yield from grid(("e1",), (64,), (0,), encoder_lr=0.003)
    yield from grid(("e2",), (64,), (0,), encoder_lr=0.01)


def exact() -> Iterator[Step]:
    """`hashing.py exact`; with hidden layers the epochs are fewer."""
    deep = "--likelihood-epochs 60 --encoder-epochs 40 --joint-epochs 40"
    depths = ("", f"--decoder-layers 1 {deep}", f"--decoder-layers 2 {deep}")
    runs = {f"exact_d{d}": (options, HOUR) for d, options in enumerate(depths)}
    long = "--encoders e1 --decoder-layers 2 --likelihood-epochs 60 --encoder-epochs 200"
    runs["exact_long"] = (f"{long} --joint-epochs 40", HOUR / 2)
    for seed, encoders in ((2, "e1"), (3, "e1 e3")):
        for d, options in enumerate(depths):
            kinds = encoders if d < 2 else "e1"
            command = f"--encoders {kinds} --seed {seed} {options}"
            runs[f"exact_seed{seed}_d{d}"] = (command, 0.7 * HOUR)
    for d in (0, 1):
        command = f"--encoders e3 --seed 2 {depths[d]}"
        runs[f"exact_seed2_e3_d{d}"] = (command, HOUR / 2)
    for name, (options, seconds) in runs.items():
        yield Step(5, name, f"hashing.py exact {options} --out {{self}}", seconds)


def lengths() -> Iterator[Step]:
    """Documents of few words."""
    for seed, decoder in itertools.product((1, 2, 3), ("free", "linear")):
        command = f"hashing.py lengths --decoder {decoder} --seed {seed} --out {{self}}"
        yield Step(5, f"lengths/{decoder}_seed{seed}", command, 600)


def report() -> Iterator[Step]:
    """The full protocol of the report, with everything that this repository adds."""
    yield Step(3, "mixture", "mixture.py --out {self}", 240)
    for seed in (1, 2):
        yield Step(3, f"mixture_seed{seed}", f"mixture.py --seed {seed} --out {{self}}", 200)
    released = "mixture.py --points-per-component 2000 --joint-lr 1e-4 --out {self}"
    yield Step(3, "mixture_released", released, 720)
    yield from celeba()
    yield from inference()
    yield from settled()
    yield from planes()
    yield Step(5, "disarm", "hashing.py variance --out {self}", 10, resume=False)
    yield from exact()
    yield from lengths()
    yield from grids()


def quick() -> Iterator[Step]:
    """A small version of everything, on drawn faces and docstrings."""
    yield Step(3, "mixture", "mixture.py quick --out {self}", 35)
    yield Step(4, "celeba/dcgan", "dcgan.py quick --out {self}", 105)
    command = "celeba_encoder.py quick --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}"
    yield Step(4, "celeba/encoder_report", command, 75)
    fitted = "--encoder {celeba/encoder_report}/model.pt --out {self}"
    yield Step(4, "celeba/joint_report", f"celeba_joint.py quick {fitted}", 80)
    for kind, weight in (("factorized", 1), ("full", 0)):
        command = "celeba_joint.py quick --schedule falling --precision float32"
        command += f" --weight {weight} --sigma 0.5 --lr 1e-3 --iterations 40"
        command += f" --batch-size 16 --track 2 {fitted}"
        yield Step(4, f"inference/{kind}", command, 40)
    command = "celeba_joint.py plane --sigmas 0.8 --weights 6 --points 100 --out {self}"
    yield Step(4, "plane/own_seed0", command, 40)
    yield Step(5, "disarm", "hashing.py variance --out {self}", 20, resume=False)
    command = "hashing.py lengths --corpus docstrings --decoder free --lengths 2 8 --weights 4"
    command += " --words 100 --documents 300"
    yield Step(5, "lengths/free_seed1", f"{command} --out {{self}}", 30)
    yield from grid(("e1", "e3", "e4"), (8,), (0,), epochs=(20, 0), options="--corpus docstrings")
    command = "hashing.py exact --corpus docstrings --encoders e1 --bits 6 --likelihood-epochs 20"
    command += " --encoder-epochs 10 --joint-epochs 20 --out {self}"
    yield Step(5, "exact_d0", command, 27)


STEPS = {"quick": tuple(quick()), "report": tuple(report())}
