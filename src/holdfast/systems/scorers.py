"""Scores that a run does not learn itself: models of other runs, functions, endpoints."""

from holdfast.data.template import Template
from holdfast.models.heads import load_score_model
from holdfast.models.load import load_tokenizer
from holdfast.preference.endpoint import EndpointScorer, EndpointSettings
from holdfast.preference.functions import FunctionSettings, load_function
from holdfast.preference.score import ModelScorer, Scorer
from holdfast.rollout.experience import RolloutSettings
from holdfast.systems import stages


class ScoredRun(stages.RunSettings):
    """Settings of a run that samples answers and may have them scored by what others made."""

    scorers: tuple[stages.Model, ...] = ()
    """Folders of further score models, as a run of `score_model` writes them; each reads with its own tokenizer."""
    functions: tuple[FunctionSettings, ...] = ()
    """Python functions that score answers. A recipe that names one runs its code."""
    endpoints: tuple[EndpointSettings, ...] = ()
    """Services that score answers over HTTP."""
    rollout: RolloutSettings = RolloutSettings()
    """How answers are sampled, in training and in the safety test alike."""

    def further_scorers(self, device: str) -> tuple[Scorer, ...]:
        """The scorers that are not learned here, in the order of the settings."""
        return (
            *(self._saved(model, device) for model in self.scorers),
            *(load_function(one) for one in self.functions),
            *(EndpointScorer(one) for one in self.endpoints),
        )

    def _saved(self, model: stages.Model, device: str) -> Scorer:
        """A saved score model that reads text with its own tokenizer, whatever the policy's is."""
        words = load_tokenizer(model.name or "", trust_remote_code=model.trust_remote_code, revision=model.revision)
        template = Template(words, max_length=self.text.max_length, chat_template=self.text.chat_template)
        return ModelScorer(load_score_model(model, device), template, self.rollout.micro_tokens)
