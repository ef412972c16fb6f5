"""What PPO and its kin are made of: their settings, the published methods among them, and what they report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rest.baselines.rollout import RolloutSettings
from rest.errors import UserError, refuse_below
from rest.learning.divergence import FixedCoefficient, InLoss, InReward
from rest.learning.learner import check_decay
from rest.learning.lora import Trainable
from rest.learning.optimizers import Adam, Schedule
from rest.learning.returns import GAE, Group, LeaveOneOut
from rest.learning.surrogate import ClippedSurrogate, ClippedValue, Reinforce
from rest.policy.policy import Policy
from rest.policy.value import Value
from rest.reward.learned.network import LearnedReward
from rest.reward.reward import Reward

METRICS = {
    "objective/reward": "mean reward of the rollout's hypotheses, before anything is taken off",
    "objective/kl": "divergence to the anchor by `divergence.estimator`, summed over tokens, nats a hypothesis",
    "objective/coefficient": "the KL coefficient in this rollout",
    "objective/penalised_reward": "mean of what a hypothesis' tokens are paid in all, before whitening",
    "ppo/policy_loss": "the clipped surrogate, mean over updates",
    "ppo/clip_fraction": "share of tokens whose ratio is held by the clip",
    "ppo/approx_kl": "divergence of the policy that drew from the one updated (K3), nats a token, mean over updates",
    "ppo/ratio": "mean ratio of the two policies",
    "ppo/entropy": "entropy of the next token, nats",
    "ppo/pretraining_nll": "negative log-likelihood of human pairs, nats a token; only with `pretraining`",
    "ppo/gradient_norm": "of the policy, before clipping",
    "ppo/updates": "updates of the policy in this rollout; fewer when `target_kl` ends it",
    "ppo/value_loss": "the critic's loss, mean over updates",
    "ppo/value_clip_fraction": "share of tokens whose value is held by the clip",
    "ppo/explained_variance": "1 - variance of (return - value) / variance of returns, before the updates",
    "ppo/critic_gradient_norm": "of the critic, before clipping",
    "ppo/advantage_deviation": "standard deviation of the advantages before whitening",
    "ppo/sampler_gap": "largest difference of the sampler's log-probabilities from the update's; 0 but for rounding",
    "length/mean": "tokens of a hypothesis, EOS included",
    "length/cut": "share of hypotheses without EOS",
    "learning_rate": "of the policy, mean over updates",
    "dev/score": "of the policy, or of its moving average, by the experiment's `choose`; a line of its own",
}


@dataclass(frozen=True)
class FromPolicy:
    """The value function starts from the policy."""

    def __call__(self, policy: Policy, reward: Reward) -> Value:
        return Value.start(policy)


@dataclass(frozen=True)
class FromReward:
    """The value function starts from the reward's network, as InstructGPT's does (Ouyang et al. 2022, §C.4).

    Its body is the reward's, which may be of another size than the policy; its head is new.
    """

    def __call__(self, policy: Policy, reward: Reward) -> Value:
        learned = reward.function
        if not isinstance(learned, LearnedReward):
            raise UserError(
                f"ppo.critic.start FromReward: {reward.name} is not learned, so the critic has no network of it"
            )
        body = learned.body
        if body is None or learned.reader.tokenizer.identity != policy.tokenizer.identity:
            kind = type(learned.network.settings.body).__name__
            raise UserError(
                f"ppo.critic.start FromReward: the reward's network ({kind}) does not read what the policy does: "
                f"a translation model with the policy's tokenizer is needed"
            )
        return Value.on(body, policy.tokenizer.pad_id)


@dataclass(frozen=True)
class CriticSettings:
    """How the value function learns; it is a network of its own."""

    start: FromPolicy | FromReward = field(default_factory=FromPolicy)
    """Whose network it starts from."""
    loss: ClippedValue = field(default_factory=ClippedValue)
    schedule: Any = field(default_factory=lambda: Schedule(3e-4))
    optimizer: Any = field(default_factory=Adam)
    warmup_rollouts: int = 2
    """In the first so many rollouts only the critic learns."""


@dataclass(frozen=True)
class PPOSettings:
    """PPO, unless `advantage`, `divergence` and `surrogate` say otherwise: `RLOO` and `GRPO` are such settings."""

    rollouts: int = 0
    """How long to train; 0: no PPO in this experiment."""
    evaluate_every: int = 10
    """Rollouts between evaluations on dev; a checkpoint is written at each."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    sources: int = 0
    """Draw for these many sources only, those of a first Grow step of as many; 0: for all."""
    advantage: GAE | LeaveOneOut | Group = field(default_factory=GAE)
    """What a token turned out to be worth: by a critic, or beside the other samples of its source."""
    divergence: InReward | InLoss = field(default_factory=InReward)
    """Where the divergence to the anchor enters, how it is estimated, and how much of it."""
    surrogate: ClippedSurrogate | Reinforce = field(default_factory=ClippedSurrogate)
    """What the policy's updates minimise."""
    epochs: int = 2
    """How often a rollout is gone through."""
    target_kl: float = 0.0
    """A rollout's updates of the policy end when one has a ppo/approx_kl above this; 0: never."""
    pretraining: float = 0.0
    """γ of PPO-ptx: the weight of the log-likelihood of human pairs (Ouyang et al. 2022, eq. 2), a token."""
    pretraining_pairs: int = 64
    """Human pairs joined to a rollout, where `pretraining` is not 0."""
    schedule: Any = field(default_factory=lambda: Schedule(1e-4))
    optimizer: Any = field(default_factory=Adam)
    ema: float = 0.0
    """Decay, an update, of a moving average of the policy (InstructGPT: .992): what is evaluated and kept. 0: none."""
    average: int = 1
    """Average the policies of so many last evaluations at the end; kept only if that scores better."""
    trainable: Trainable = field(default_factory=Trainable)
    """What of the policy trains; what does not is shared with the anchor."""
    critic: CriticSettings = field(default_factory=CriticSettings)

    def __post_init__(self) -> None:
        least = {
            "rollouts": 0,
            "sources": 0,
            "evaluate_every": 1,
            "epochs": 1,
            "average": 1,
            "target_kl": 0,
            "pretraining": 0,
        }
        refuse_below("ppo.", self, least | {"pretraining_pairs": 1})
        if 0 < self.sources < self.rollout.sources:
            raise UserError(f"ppo.sources {self.sources} are fewer than ppo.rollout.sources {self.rollout.sources}")
        check_decay("ppo.ema", self.ema)
        if self.advantage.of_sequences and self.rollout.samples_per_source < 2:
            raise UserError(
                f"ppo.rollout.samples_per_source {self.rollout.samples_per_source}: "
                f"{type(self.advantage).__name__} compares the samples of a source, so it needs two"
            )
        if isinstance(self.surrogate, Reinforce) and (self.epochs > 1 or not self.advantage.of_sequences):
            raise UserError(
                f"ppo.surrogate Reinforce: epochs must be 1 and the advantage one of sequences, "
                f"not {self.epochs} and {type(self.advantage).__name__}"
            )

    @property
    def has_critic(self) -> bool:
        return not self.advantage.of_sequences


RLOO = PPOSettings(
    advantage=LeaveOneOut(),
    divergence=InReward(coefficient=FixedCoefficient(0.05)),
    surrogate=Reinforce(),
    epochs=1,
)
"""REINFORCE leave-one-out as published (Ahmadian et al. 2024): a hypothesis is one action, paid its reward less the KL
of all its tokens; from that goes the mean of its source's other samples, and nothing more is done: no critic, no clip,
no whitening."""

GRPO = PPOSettings(
    advantage=Group(),
    divergence=InLoss(coefficient=FixedCoefficient(0.04)),
    surrogate=ClippedSurrogate(average="sequences"),
    rollout=RolloutSettings(sources=32, samples_per_source=8),
    epochs=1,
)
"""Group relative policy optimisation as published (Shao et al. 2024, eqs. 3-4): rewards are standardised within a
source, once; the KL is added to the clipped loss of each token by K3; the loss is the mean of a sequence's tokens, then
of sequences. Theirs are 64 samples a question and one update a rollout."""
