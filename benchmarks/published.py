"""What each table of README.md and docs/numbers.md shows: which runs, in which columns (`benchmarks/tables.py`)."""

from __future__ import annotations

from benchmarks.tables import (
    Listed,
    Phases,
    Predictions,
    Runs,
    Table,
    Transfers,
    final_return,
    final_success,
    final_weights,
    interim,
    interim_at,
    interim_returns,
    last_return,
    last_success,
    minutes,
    random_rate,
    random_return,
    random_success,
    seed,
)

SEED, RANDOM, RETURN = ("seed", seed), ("random policy", random_rate), ("return", final_return)
FINAL = ("final score (weights of env step)", final_weights)
CLOCK = ("wall clock", minutes)
BEFORE_AND_AFTER = (
    SEED,
    ("random policy: success, 95 % interval", random_success),
    ("return", random_return),
    ("trained agent: success", final_success),
    RETURN,
    CLOCK,
)
TO_12 = ("interim scores at 4000, 6000, ... 12 000", interim)
DIFFERS = ("what differs", None)

BY_HAND = (
    "drawing-speed",
    "task-scores",
    "toy-scores",
    "pretraining-speed",
    "int8-products",
    "int8-rollout",
    "shared-prefixes",
    "averaged-actor",
    "reward-reading",
    "decodings-preset",
    "inside-the-dream",
    "swings-guesses",
    "told-motion",
    "handle-moment",
    "forgetting",
    "overfitting",
    "prediction-way",
    "rollout",
    "within-start",
    "tokenizer-probe",
    "runs-on-the-way",
    "first-version",
)
"""What was measured by hand, each a file of this name in docs/results/log."""

TABLES: dict[str, Table] = {
    **{name: Listed(f"log/{name}.csv") for name in BY_HAND},
    "door-close": Runs(BEFORE_AND_AFTER, [("door-close/seed0",), ("door-close/seed1",), ("door-close/seed2",)]),
    "door-close-averaged": Runs(BEFORE_AND_AFTER, [(f"door-close/averaged-seed{n}",) for n in range(3)]),
    "drawer-close-first-version": Runs(
        (*BEFORE_AND_AFTER[:3], ("trained agent: success", last_success), ("return", last_return), CLOCK),
        [(f"drawer-close-first-version/seed{n}",) for n in range(3)],
    ),
    "door-close-counted": Runs(
        (SEED, RANDOM, FINAL, RETURN, TO_12), [("door-close/counted-seed1",), ("door-close/counted-seed2",)]
    ),
    "door-close-code": Runs(
        (("code", None), SEED, RANDOM, FINAL, RETURN, TO_12),
        [
            ("door-close/before-seed0", "8ba349d (`before-*`)"),
            ("door-close/counted-seed0", "f36aa87 (`counted-*`)"),
            ("door-close/peak-seed0", "rewards begin at 0 (`peak-*`)"),
            ("door-close/peak-seed1", "rewards begin at 0"),
            ("door-close/peak-seed2", "rewards begin at 0"),
            ("door-close/averaged-seed0", "an average of the actor plays (`averaged-*`)"),
            ("door-close/averaged-seed1", "an average of the actor plays"),
            ("door-close/averaged-seed2", "an average of the actor plays"),
            ("door-close/averaged-longer-seed2", "the same run, gone on with to 16 000"),
        ],
    ),
    "pendulum": Runs(
        (
            SEED,
            ("random policy", random_return),
            ("return at 6000, 8000, ... 20 000", interim_returns),
            ("final return (weights of env step 16 000)", final_return),
            CLOCK,
        ),
        [("pendulum/drqv2-seed0",)],
    ),
    "five-demonstrations": Runs(
        (("task", None), SEED, FINAL, RETURN, ("interim scores at 600, 800, 1000, 1200", interim)),
        [
            ("five-demonstrations/bc-plate-slide-s0", "plate-slide-v3"),
            ("five-demonstrations/bc-plate-slide-s1", "plate-slide-v3"),
            ("five-demonstrations/bc-wall-s0", "button-press-topdown-wall-v3"),
        ],
    ),
    "further-tasks": Runs(
        (("task, what differs", None), SEED, RANDOM, FINAL, ("interim scores", interim_at), CLOCK),
        [
            ("drawer-close/seed0", "drawer-close-v3"),
            ("drawer-close/seed1", "drawer-close-v3"),
            ("faucet-close/proprio-seed0", "faucet-close-v3, proprioception"),
            ("handle-press/proprio-seed0", "handle-press-v3, proprioception, 20 000 env steps"),
            (
                "handle-press/shift-calm-seed0",
                "handle-press-v3, proprioception, `agent.greedy_episodes=0.3 fit.random_shift=4 "
                "schedule.tokenizer.updates=8 schedule.dynamics.updates=6`",
            ),
        ],
    ),
    "demonstrations": Runs(
        (
            SEED,
            ("random policy", random_success),
            FINAL,
            RETURN,
            ("interim scores at 4000, 6000, ... 20 000", interim),
            CLOCK,
            ("", None),
        ),
        [
            ("plate-slide/demos-recipe-seed0", "stopped at 13 600 and continued"),
            ("plate-slide/demos-recipe-seed1", "stopped at 2800 and 16 400 and continued"),
        ],
    ),
    "demonstrations-way": Runs(
        (DIFFERS, FINAL, TO_12, CLOCK),
        [
            ("plate-slide/demos-seed0", "`demos=5` alone"),
            ("plate-slide/imitation-seed0", "+ `agent.bc_coef=1`"),
            (
                "plate-slide/imitation-proprio-seed0",
                "+ `worldmodel.proprio=true` (and an average of the actor's weights, see below)",
            ),
            ("plate-slide/imitation-proprio-calm-seed0", "+ `agent.greedy_episodes=0.3` (without the average)"),
            ("door-lock/imitation-seed0", "door-lock-v3, `demos=5 agent.bc_coef=1`"),
        ],
    ),
    "more-data": Runs(
        (("task, what differs", None), SEED, FINAL, ("interim scores", interim_at), CLOCK),
        [
            ("handle-press/rich-seed0", "handle-press-v3"),
            (
                "handle-press/rich-starts-seed0",
                "handle-press-v3, `agent.batch_size=192 schedule.learn.updates=6`",
            ),
            ("coffee-button/rich-seed0", "coffee-button-v3"),
        ],
    ),
    "told": Runs(
        (("task", None), ("told", None), FINAL, ("interim scores", interim_at)),
        [
            ("handle-press/rich-movement-seed0", "handle-press-v3", "position, change"),
            ("handle-press/rich-wanted-seed0", "handle-press-v3", "and where the controller wants the hand"),
            ("faucet-close/rich-movement-seed0", "faucet-close-v3", "position, change"),
            (
                "button-press-topdown/rich-movement-seed0",
                "button-press-topdown-v3 (`tokenizer.updates=2 dynamics.updates=6`)",
                "position, change",
            ),
        ],
    ),
    "faucet-close": Runs(
        (
            DIFFERS,
            SEED,
            ("turned", None),
            FINAL,
            RETURN,
            ("interim scores", interim_at),
            CLOCK,
        ),
        [
            (
                "faucet-close/starts192-seed0",
                "`return_prioritised_fraction=0` (24 000 env steps planned, `dynamics.updates=8`, initial 700 and 500)",
                "0.2, 3.8, 3.7",
            ),
            (
                "faucet-close/starts192-noise-seed0",
                "`return_prioritised_fraction=0`, and from some decision on (2 % at each) noise alone acts until the "
                "episode ends",
                "0.2, 2.2, 0.7",
            ),
            (
                "faucet-close/best-fraction-first-form-seed0",
                "`return_prioritised_fraction=0.4` as first written (other random numbers)",
                "0.2, 6.4, 13.8",
            ),
            ("faucet-close/best-fraction-seed0", "`return_prioritised_fraction=0.4`", "0.2, 6.7, 11.3"),
            ("faucet-close/best-fraction-seed1", "`return_prioritised_fraction=0.4`", "2.5, 4.8, 2.1 (8.0 after)"),
        ],
    ),
    "proprio": Runs(
        (
            ("task", None),
            SEED,
            RANDOM,
            FINAL,
            RETURN,
            ("interim scores at 8000, 12 000 ...", interim),
            CLOCK,
            ("", None),
        ),
        [
            ("handle-press-side/proprio-seed0", "handle-press-side-v3", ""),
            ("handle-press-side/proprio-seed1", "handle-press-side-v3", "stopped at 19 200 and continued"),
            (
                "reach/proprio-seed0",
                "reach-v3",
                "of ten training episodes 0.10 to 0.30 until 13 000, 0.30 to 0.70 from 15 000 on",
            ),
            ("plate-slide-side/proprio-seed0", "plate-slide-side-v3", ""),
        ],
    ),
    "minutes": Phases(
        (
            ("collect", ["collect"]),
            ("fit", ["fit"]),
            ("imagine and learn", ["imagine", "learn"]),
            ("evaluate", ["evaluate"]),
        ),
        [
            ("door-close, seeds 0 to 2, mean", [f"door-close/seed{n}" for n in range(3)]),
            ("door-close, `make train` (two threads)", ["make-train/seed0"]),
            (
                "handle-press-side, `experiment=proprio`, two seeds, mean",
                [f"handle-press-side/proprio-seed{n}" for n in range(2)],
            ),
        ],
    ),
    "ablations": Runs(
        (DIFFERS, SEED, TO_12, FINAL, RETURN),
        [
            ("door-close/seed0", "nothing (pixels, the preset)"),
            ("door-close/perfect-seed0", "`experiment=oracle` (9 min)"),
            (
                "door-close/ablation-plain-seed0",
                "free embeddings, no jitter, no strange contexts (`worldmodel.embedding=table "
                "worldmodel.losses.token_noise=0 worldmodel.losses.context_swap_prob=0`)",
            ),
            ("door-close/ablation-slot-seed0", "actions at the slot token alone (`worldmodel.heads.action=slot`)"),
            (
                "door-close/ablation-frozen-seed0",
                "the tokenizer frozen after its first 350 updates (`schedule.tokenizer.updates=0`; commit f06c124)",
            ),
            ("door-close/ablation-frozen-seed1", "the same"),
            ("door-close/ablation-frozen-seed2", "the same"),
        ],
    ),
    "oracle-handle-press": Runs(
        (DIFFERS, TO_12, FINAL, CLOCK),
        [
            ("handle-press/perfect-seed0", "nothing"),
            ("handle-press/perfect-calm-seed0", "`agent.greedy_episodes=0.3`"),
            ("handle-press/perfect-starts-seed0", "`agent.batch_size=192` (from 64)"),
            ("handle-press/perfect-lr-seed0", "`agent.actor_optim.lr=1.5e-4` (from 5e-4)"),
        ],
    ),
    "pretrained": Runs(
        (("world model begins", None), SEED, FINAL, RETURN, TO_12),
        [
            (f"door-close/{name}seed{n}", said)
            for n in range(3)
            for name, said in (("", "from scratch"), ("pretrained-", "pre-trained"))
        ],
    ),
    "prediction": Predictions(
        [
            ("**the model**", "prediction/actions.json", "model"),
            ("the same, told actions of zero", "prediction/actions.json", "zero"),
            ("the same, told another clip's actions", "prediction/actions.json", "shuffled"),
            (
                "trained without actions (same tokenizer, updates and seed; `actions=false`)",
                "prediction/free.json",
                "model",
            ),
            ("the last frame copied", "prediction/actions.json", "copy"),
            ("true codes: what its tokenizer can show at best", "prediction/actions.json", "reconstruction"),
        ]
    ),
    "prediction-short": Predictions(
        [
            ("**the model**", "prediction/actions.json", "model"),
            ("the same, told another clip's actions", "prediction/actions.json", "shuffled"),
            ("trained without actions", "prediction/free.json", "model"),
            ("the last frame copied", "prediction/actions.json", "copy"),
        ]
    ),
    "transfer-short": Transfers(
        "transfer-fine/transfer.csv",
        [
            ("as it is", "zero"),
            ("tokenizer adapted", "tokenizer"),
            ("**both parts adapted**", "full"),
            ("from scratch", "scratch"),
            ("the last frame copied", "copy"),
        ],
    ),
    "transfer-fine": Transfers(
        "transfer-fine/transfer.csv",
        [
            ("zero-shot", "zero"),
            ("tokenizer adapted", "tokenizer"),
            ("**full fine-tuning**", "full"),
            ("from scratch", "scratch"),
            ("the last frame copied", "copy"),
        ],
        whole=True,
    ),
    "transfer": Transfers(
        "transfer/transfer.csv",
        [
            ("zero-shot", "zero"),
            ("tokenizer adapted, codebooks frozen", "tokenizer"),
            ("full fine-tuning", "full"),
            ("from scratch", "scratch"),
            ("the last frame copied", "copy"),
        ],
        whole=True,
    ),
}
"""Name -> what stands there."""
