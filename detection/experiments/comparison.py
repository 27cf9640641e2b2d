"""Runs an experiment from its file to its results: order of the runs, and layout of the files.

OUTPUT/experiment.json     the proof of fairness: see proof.py
OUTPUT/runs/VARIANT/SEED/  a run: see runs.py
OUTPUT/costs/VARIANT.json  see costs.py
OUTPUT/plan.json           equal_time: seconds per iteration and iterations of every variant, measured once
OUTPUT/layout.json         memory layout of all runs, if solver.layout is auto
OUTPUT/grid/, grid.json    learning_rate_grid: the runs of the search, and the chosen rates
OUTPUT/leakage.json        see leakage.py
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from detection.config.sections import ProgramConfig
from detection.engine.checkpoint import read_checkpoint
from detection.engine.device import choose_device
from detection.engine.trainer import layout_of
from detection.evaluation.text_table import text_table
from detection.experiments.experiment import Experiment, check_fair, resolve_variants
from detection.experiments.kind import Kind
from detection.experiments.leakage import check_leakage
from detection.experiments.proof import check_apart, describe, hash_code
from detection.experiments.protocols import (
    StepTime,
    choose_rates,
    grow,
    over_budget,
    scale_solver,
    time_step,
)
from detection.experiments.runs import (
    Placement,
    Programs,
    Run,
    check_resumable,
    child_environment,
    execute,
    is_done,
    last_error,
    read_status,
    write_json,
    write_status,
)
from detection.progress import SCREEN

__all__ = ["Comparison", "cost_weights", "measure_variant"]

ENDED = ("done", "failed")
ConfigT = TypeVar("ConfigT", bound=ProgramConfig)
STEADY = 0.1  # spread of repeated timings up to which there is no warning


@dataclass(frozen=True, slots=True)
class Comparison(Generic[ConfigT]):
    """An experiment, and how and where it runs.

    Attributes:
        experiment: the experiment, as read from its file.
        kind: kind of its networks.
        output: directory of all its files.
        programs: command lines that start trainings.
        placement: number of runs in parallel, and their GPUs.
        say: called with each line of progress.
    """

    experiment: Experiment
    kind: Kind[ConfigT]
    output: Path
    programs: Programs
    placement: Placement = field(default_factory=Placement)
    say: Callable[[str], None] = SCREEN.print

    def run(self, *, retry_failed: bool = False) -> bool:
        """Trains, tests and measures what is left; returns whether everything is done.

        Raises:
            ValueError: an unfair experiment, test images in the training set, bad data or config, or a run started
                with another config. Nothing has been trained then.
        """
        configs = self._timed(write=True, near=True)
        check_resumable(self.grid_runs(configs) or self.seed_runs(configs))
        self._write_proof(configs)
        if not self._search(configs, retry_failed):
            return False
        if self.experiment.protocol.factors:
            found = self._with_rates(configs)
            self._write_proof(configs | found)
            configs = found
        left = self._execute(self.seed_runs(configs), retry_failed)
        self._check_budget(configs)
        unmeasured = [variant for variant in configs if not self._measure(variant)]
        return not left and not unmeasured and len(configs) == len(self.experiment.arms)

    def run_one(self, index: int, *, retry_failed: bool = False) -> bool:
        """Trains and tests run ``index`` of ``plan``, on one of several machines; returns whether it is done now.

        Raises:
            ValueError: as ``run``; no such run; or missing runs or times that it depends on.
        """
        configs = self._timed(write=False)
        searched, runs = self.grid_runs(configs), self._numbered(configs)
        if not 0 <= index < len(runs):
            raise ValueError(f"--index {index}: the runs are numbered from 0 to {len(runs) - 1}; --dry-run lists them")
        chosen = runs[index]
        if searched and chosen not in searched:
            missing = [n for n, run in enumerate(runs) if run in searched and not _has_ended(run)]
            if missing:
                raise ValueError(f"--index {index} needs the rates of the search, whose runs {missing} are not done")
            found = self._with_rates(configs)
            if chosen.variant not in found:
                return False
            chosen = replace(chosen, config=replace(_last(found[chosen.variant]), seed=chosen.config.seed))
            configs |= found
        if not (self.output / "experiment.json").is_file():
            self._write_proof(configs)
        return not self._execute([chosen], retry_failed)

    def plan(self) -> str:
        """Returns the runs with numbers, states, iterations and estimated hours, from a few timed iterations.

        Under equal_time it also fixes the number of iterations of each variant.

        Raises:
            ValueError: as ``run``, or a training that does not start.
        """
        configs = self._timed(write=True)
        path = self.output / "plan.json"
        known = json.loads(path.read_text(encoding="utf-8"))["seconds_per_step"] if path.is_file() else {}
        seconds = {v: known.get(v) or self._time(v, config).seconds for v, config in configs.items()}
        header, rows, total = ("index", "run", "state", "steps", "s/step", "hours"), list[tuple[str, ...]](), 0.0
        for number, run in enumerate(self._numbered(configs)):
            steps, state = run.config.solver.iterations, read_status(run.folder).get("state", "to do")
            hours = steps * seconds[run.variant] / 3600
            total += 0.0 if state in ENDED else hours
            kind = "search " if run.folder.parent.parent.name == "grid" else ""
            times = f"{seconds[run.variant]:.2f}", f"{hours:.2f}"
            rows.append((str(number), f"{kind}{run}", state, str(steps), *times))
        table, jobs = text_table(header, rows, left=(0, 1, 2)), self.placement.jobs
        return f"{table}\n{total:.1f} hours of training left, {total / jobs:.1f} with {jobs} at once; tests not counted"

    def check(self, *, near: bool = False) -> dict[str, ConfigT]:
        """Returns variant -> config; checks that they differ only in allowed keys and train on no test image.

        ``near`` also looks for near copies of test images, which decodes all images.

        Raises:
            ValueError: an unfair experiment, or copies that it does not allow.
        """
        configs = resolve_variants(self.experiment, self.kind.schema)
        check_fair(self.experiment, configs)
        check_leakage(self.experiment, configs, self.kind, self.output, near=near, say=self.say)
        return configs

    def seed_runs(self, configs: Mapping[str, ConfigT]) -> list[Run]:
        """Returns the runs that are compared."""
        return [
            Run(variant, str(seed), replace(_last(config), seed=seed), self.output / "runs" / variant / str(seed))
            for variant, config in configs.items()
            for seed in self.experiment.seeds
        ]

    def grid_runs(self, configs: Mapping[str, ConfigT]) -> list[Run]:
        """Returns the runs that search the learning rate of each variant; none under other protocols.

        Raises:
            ValueError: the images that choose the rate are also tested or trained on.
        """
        protocol = self.experiment.protocol
        runs = self._runs_at(configs, protocol.factors)
        if runs:
            self._check_validation(runs[0].config, configs[runs[0].variant])
        factors = protocol.factors
        for _ in range(protocol.extend):
            if not all(map(_has_ended, runs)):
                break
            factors = (*factors, *grow(factors, choose_rates(runs, self._metric(configs))["variants"]))
            runs += self._runs_at(configs, factors[len(runs) // len(configs) :])
        return runs

    def _runs_at(self, configs: Mapping[str, ConfigT], factors: Sequence[float]) -> list[Run]:
        """Returns the runs of the search at ``factors``."""
        protocol, seed, runs = self.experiment.protocol, self.experiment.seeds[0], list[Run]()
        for variant, config in configs.items() if factors else ():
            data = replace(config.data, train=protocol.train or config.data.train, val=(), test=protocol.validation)
            for factor in factors:
                solver = replace(config.solver, base_lr=config.solver.base_lr * factor)
                folder = self.output / "grid" / variant / f"{factor:g}"
                own = replace(_last(config), data=data, solver=replace(solver, best_metric=None), seed=seed)
                runs.append(Run(variant, f"{factor:g}", own, folder))
        return runs

    def _numbered(self, configs: Mapping[str, ConfigT]) -> list[Run]:
        """Returns all runs by their numbers; runs of a grown grid come last, so that numbers stay the same."""
        searched, declared = self.grid_runs(configs), len(self.experiment.protocol.factors) * len(configs)
        return [*searched[:declared], *self.seed_runs(configs), *searched[declared:]]

    def _search(self, configs: Mapping[str, ConfigT], retry_failed: bool) -> bool:
        """Searches the learning rates, also on a grown grid; returns whether the search is over."""
        searched = list[Run]()
        while len(runs := self.grid_runs(configs)) > len(searched):
            if searched:
                more = ", ".join(map(str, runs[len(searched) :]))
                self.say(f"the best learning rate lies at an edge of the grid; also trying {more}")
            searched = runs
            self._execute(searched, retry_failed)
            left = [run for run in searched if not _has_ended(run)]  # a rate may be too high
            if left:
                self.say(f"learning rates are chosen after these runs: {', '.join(map(str, left))}")
                return False
        return True

    def _metric(self, configs: Mapping[str, ConfigT]) -> str:
        """Returns the figure that chooses the learning rate."""
        config = next(iter(configs.values()))
        return config.solver.best_metric or self.kind.metric(config)

    def _check_budget(self, configs: Mapping[str, ConfigT]) -> None:
        """Reports runs that took notably longer than equal_time allows."""
        minutes = self.experiment.protocol.minutes
        if minutes is None:
            return
        hours = {str(run): read_status(run.folder).get("hours") or 0.0 for run in self.seed_runs(configs)}
        for name, taken in over_budget(minutes, hours).items():
            self.say(f"warning: {name} took {taken:.1f} minutes of training, {minutes:g} were allowed")

    def _check_validation(self, search: ProgramConfig, compared: ConfigT) -> None:
        chosen = self.kind.read(compared, search.data.test, "protocol.validation", self.say)
        sets = {"data.test": compared.data.test, "protocol.train or else data.train": search.data.train}
        for key, specs in sets.items():
            check_apart((key, "protocol.validation"), self.kind.read(compared, specs, key, self.say), chosen)

    def _timed(self, *, write: bool, near: bool = False) -> dict[str, ConfigT]:
        """Returns variant -> config with its iterations under equal_time; measures unknown times."""
        configs = self._laid_out(self.check(near=near), timed=write)
        minutes, path = self.experiment.protocol.minutes, self.output / "plan.json"
        if minutes is None:
            return configs
        if not path.is_file():
            if not write:
                raise ValueError(f"{path} is missing: run once with --dry-run, which times steps and writes it")
            times = {variant: self._time(variant, config) for variant, config in configs.items()}
            seconds = {variant: time.seconds for variant, time in times.items()}
            spread = {variant: time.spread for variant, time in times.items()}
            write_json(path, {"minutes": minutes, "seconds_per_step": seconds, "spread": spread})
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["minutes"] != minutes or plan["seconds_per_step"].keys() != configs.keys():
            raise ValueError(
                f"{path} was made for {plan['minutes']} minutes and {', '.join(plan['seconds_per_step'])}, "
                f"the experiment has {minutes} and {', '.join(configs)}; choose another --output-dir"
            )
        steps = {variant: max(1, round(60 * minutes / time)) for variant, time in plan["seconds_per_step"].items()}
        return {v: replace(config, solver=scale_solver(config.solver, steps[v])) for v, config in configs.items()}

    def _laid_out(self, configs: Mapping[str, ConfigT], *, timed: bool) -> dict[str, ConfigT]:
        """Replaces the layout auto by one layout, chosen once for all runs and machines.

        Without a layout so far, experiments of earlier versions and calls without ``timed`` use channels last.
        """
        path, first = self.output / "layout.json", next(iter(configs.values()))
        if first.solver.layout != "auto":
            return dict(configs)
        if not path.is_file():
            timed = timed and not (self.output / "experiment.json").is_file()
            chosen = layout_of(first, choose_device(first.device), self.say) if timed else "channels_last"
            write_json(path, {"layout": chosen})
        layout = json.loads(path.read_text(encoding="utf-8"))["layout"]
        return {v: replace(config, solver=replace(config.solver, layout=layout)) for v, config in configs.items()}

    def _time(self, variant: str, config: ConfigT) -> StepTime:
        self.say(f"{variant}: timing a few steps")
        time = time_step(config, self.programs, self.placement)
        if time.spread > STEADY:
            kept = "" if self.experiment.protocol.minutes is None else f"remove {self.output / 'plan.json'} to "
            self.say(
                f"warning: {variant}: repeated timings differ by {100 * time.spread:.0f} %; end other programs and "
                f"{kept}time again"
            )
        return time

    def _with_rates(self, configs: Mapping[str, ConfigT]) -> dict[str, ConfigT]:
        """Returns ``configs`` with the learning rates of the search, without those whose runs failed."""
        grid = choose_rates(self.grid_runs(configs), self._metric(configs))
        write_json(self.output / "grid.json", {**grid, "validation": list(self.experiment.protocol.validation)})
        found = {}
        for variant, config in configs.items():
            rate = grid["variants"][variant]["base_lr"]
            if rate is not None:
                found[variant] = replace(config, solver=replace(config.solver, base_lr=rate))
                continue
            error = "no learning rate of the grid trained; grid.json and the logs in grid/ tell more"
            self.say(f"{variant}: {error}")
            for run in self.seed_runs({variant: config}):
                write_status(run.folder, "failed", error=error, code=hash_code(), exit_code=1)
        return found

    def _execute(self, runs: Sequence[Run], retry_failed: bool) -> list[Run]:
        return execute(
            runs,
            self.programs,
            placement=self.placement,
            code=hash_code(),
            retry_failed=retry_failed,
            say=self.say,
        )

    def _write_proof(self, configs: Mapping[str, ConfigT]) -> None:
        """Writes experiment.json, which flags runs made by another version of the code."""
        seed = self.experiment.seeds[0]
        proof = describe(
            self.experiment, {v: replace(c, seed=seed) for v, c in configs.items()}, self.kind, say=self.say
        )
        current, old = proof["hashes"]["code"], dict[str, str]()
        for run in self.seed_runs(configs):
            code = read_status(run.folder).get("code", current)
            if is_done(run.folder) and code != current:
                old[run.variant] = f"{old.get(run.variant, '')} seed {run.name}: {code[:12]}".strip()
        if old:
            self.say(f"warning: the code has changed since these runs: {old}")
            values = {variant: old.get(variant, current[:12]) for variant in configs}
            proof["also_changes"].append({"what": "code", "values": values})
        write_json(self.output / "experiment.json", proof)

    def _measure(self, variant: str) -> bool:
        """Measures the costs of ``variant`` in a child process unless they exist; returns whether they exist now."""
        path, weights = self.output / "costs" / f"{variant}.json", cost_weights(self.output, variant)
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["weights"] == (weights and str(weights)):
            return True
        self.say(f"{variant}: measuring costs")
        command = [*self.programs.costs, "--costs", variant]
        environment = child_environment(replace(self.placement, jobs=1))
        done = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", env=environment)
        if done.returncode:
            self.say(f"{variant}: costs failed: {last_error(done.stdout + done.stderr, done.returncode)}")
        return done.returncode == 0


def measure_variant(experiment: Experiment, kind: Kind[Any], output: Path, variant: str) -> None:
    """Measures and writes the costs of ``variant``, with the weights of a finished run if there is one.

    Raises:
        ValueError: no such variant, bad data or config.
    """
    configs = resolve_variants(experiment, kind.schema)
    if variant not in configs:
        raise ValueError(f"--costs {variant}: the experiment has the variants {', '.join(configs)}")
    weights = cost_weights(output, variant)
    checkpoint = None if weights is None else read_checkpoint(weights, kind.schema)
    costs = kind.measure_costs(configs[variant], checkpoint)
    write_json(output / "costs" / f"{variant}.json", costs | {"weights": weights and str(weights)})


def cost_weights(output: Path, variant: str) -> Path | None:
    """Returns the run whose weights are used to measure ``variant``; None if none is done."""
    done = (folder for folder in sorted((output / "runs" / variant).glob("*")) if is_done(folder))
    return next(done, None)


def _has_ended(run: Run) -> bool:
    return read_status(run.folder).get("state") in ENDED


def _last(config: ConfigT) -> ConfigT:
    """Returns ``config`` set to test the last weights, so that no arm gains from choosing among checkpoints."""
    return replace(config, solver=replace(config.solver, best_metric=None))
