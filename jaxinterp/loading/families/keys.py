"""What config.json may say: a key is used, fixed or idle, or else it is refused.

A used key says something that the computation depends on, so its value is read. A fixed key may
only be at the one value that is supported, so any other value is refused. An idle key changes
nothing in what the model computes, so its value is passed over.

The lists follow the configuration classes and the modelling code of transformers 5.24, whose
defaults stand for what a file leaves out. A key that is on no list is refused by its name, since
nobody can tell what it would have changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxinterp.reading import LoadError

Json = Mapping[str, Any]

LARGEST = 2**31 - 1  # no size of a model is beyond
MOST_LAYERS = 10_000
NEEDED: Any = object()  # in place of a default: the file has to say it


@dataclasses.dataclass(frozen=True)
class Key:
    """A key that is used: what it may be, and its value where the file does not say."""

    expected: str
    fits: Callable[[Any], bool]
    default: Any = NEEDED
    null: bool = False  # whether null stands for a choice of its own


def size(default: Any = NEEDED, *, most: int = LARGEST, null: bool = False) -> Key:
    """A whole number of at least 1."""

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most

    return Key(f"a whole number from 1 to {most}", fits, default, null)


def positive(default: Any, *, null: bool = False) -> Key:
    """A finite number above 0."""
    return Key("a finite number above 0", is_positive, default, null)


def flag(default: bool) -> Key:
    """True or false."""
    return Key("true or false", lambda value: isinstance(value, bool), default)


def text(default: str) -> Key:
    """A name."""
    return Key("a name", lambda value: isinstance(value, str), default)


def listed() -> Key:
    """A list of names, null where the family's own rule holds."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)

    return Key("a list of names", fits, None, True)


def mapping(default: Any = None, *, null: bool = True) -> Key:
    """A JSON object."""
    return Key("a JSON object", lambda value: isinstance(value, dict), default, null)


def is_positive(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= 1e308 and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys that one family's config.json may hold.

    used: those that the computation depends on. fixed: those that have to be at one value, with
    what another would mean. idle: those without effect, with the reason, beside `IDLE`. aliases:
    other names of used keys. inner: those whose object has keys of its own, and which it may have.
    """

    used: Mapping[str, Key]
    fixed: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    idle: Mapping[str, str] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inner: Mapping[str, Keys] = dataclasses.field(default_factory=dict)

    def read(self, json: Json, ignore: Collection[str] = ()) -> dict[str, Any]:
        """Every used key with its value or its default.

        ignore: unknown keys that are passed over. Raises `LoadError` for a key that is unknown,
        is at a value that is not supported, or is missing, and for one in ``ignore`` that is known
        or that the file does not hold.
        """
        of = f"of this {json.get('model_type')} model"
        objects = [json, *(json[key] for key in self.inner if isinstance(json.get(key), dict))]
        for name in ignore:
            if not any(name in each for each in objects):
                raise LoadError(
                    f"ignore_keys names {name!r}, which config.json {of} does not hold among the "
                    "model's own keys: take the name out."
                )
        said = self._kept(json, ignore, of)
        for alias, key in self.aliases.items():
            if alias in said and said.setdefault(key, said[alias]) != said[alias]:
                raise LoadError(
                    f"config.json {of} says {key}={said[key]!r} and {alias}={said[alias]!r}, which "
                    "are two names of one value: remove the wrong one."
                )
        self._check_known(said, of)
        for key, (value, why) in (FIXED | dict(self.fixed)).items():
            given = said.get(key, value)
            if given != value and not (not value and given in (None, {}, [], False)):
                raise LoadError(
                    f"{key}={given!r} {of} is not supported ({why}); expected {value!r}. Choose "
                    "another checkpoint."
                )
        return {name: self._value(name, key, said, of) for name, key in self.used.items()}

    def _kept(self, json: Json, ignore: Collection[str], of: str) -> dict[str, Any]:
        """What is said without the keys to pass over. Raises `LoadError` for one that is known."""
        if known := sorted(self._known() & json.keys() & set(ignore)):
            raise LoadError(
                f"ignore_keys names {known[0]!r}, which the family {of} knows: only unknown keys "
                "can be passed over."
            )
        kept = {key: value for key, value in json.items() if key not in ignore}
        for key, keys in self.inner.items():
            if isinstance(kept.get(key), dict):
                kept[key] = keys._kept(kept[key], ignore, of)
        return kept

    def _known(self) -> set[str]:
        groups = (self.used, self.fixed, self.aliases, self.idle, IDLE, FIXED)
        return {key for group in groups for key in group}

    def _check_known(self, said: Json, of: str) -> None:
        unknown = sorted(said.keys() - self._known())
        if unknown:
            others = f" and {', '.join(map(repr, unknown[1:5]))}" if len(unknown) > 1 else ""
            raise LoadError(
                f"config.json {of} has the unknown key {unknown[0]!r}{others}, which may change "
                "what the model computes. Where it does not, remove it from the file or pass "
                f"ignore_keys={tuple(unknown[:5])!r} to load."
            )

    def _value(self, name: str, key: Key, said: Json, of: str) -> Any:
        value = said.get(name, key.default)
        if value is NEEDED or (value is None and key.default is NEEDED):
            raise LoadError(
                f"config.json {of} lacks {name!r}: download the file again or write the value "
                "into it."
            )
        if not (key.fits(value) or (value is None and key.null)):
            null = ", or null" if key.null else ""
            raise LoadError(
                f"config.json {of} says {name}={value!r}, expected {key.expected}{null}: "
                "download the file again or correct the value."
            )
        return value


def _because(reason: str, keys: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), reason)


DROPOUT = "dropout acts in training only"
INITIAL = "it shapes initial weights only"
LABELS = "it belongs to a classifier's head, which no language model has"

# Of every family: keys without effect on what a model computes from tokens, and why.
IDLE: dict[str, str] = {
    **_because(
        "it says which class wrote the file; the tables of families look at it",
        "model_type architectures",
    ),
    **_because(
        "it says what the reference returns, not what it computes",
        "output_hidden_states output_attentions output_past return_dict use_return_dict "
        "tie_last_hidden_states return_dict_in_generate output_scores torchscript",
    ),
    **_because(
        "it says how the reference runs the same computation",
        "use_cache attn_implementation _attn_implementation _attn_implementation_autoset "
        "_attn_implementation_internal experts_implementation _flash_attn_2_enabled "
        "chunk_size_feed_forward use_bfloat16 torch_dtype dtype pretraining_tp "
        "gradient_checkpointing cache_implementation use_flash_attn use_flash_attention",
    ),
    **_because(
        "it is a note of the program that wrote the file",
        "transformers_version _name_or_path name_or_path _commit_hash auto_map custom_pipelines "
        "transformers.js_config unsloth_fixed unsloth_version is_llama_config tf_legacy_loss "
        "finetuning_task task_specific_params language license model_name",
    ),
    **_because(
        "the tokenizer's files and the end of a text depend on it, not the model",
        "tokenizer_class prefix bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id "
        "cls_token_id mask_token_id decoder_start_token_id bos_token eos_token pad_token "
        "model_max_length",
    ),
    **_because(
        "it is an option of generation in the reference",
        "max_length min_length do_sample early_stopping num_beams num_beam_groups "
        "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
        "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values "
        "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens epsilon_cutoff "
        "eta_cutoff assistant_confidence_threshold assistant_lookbehind num_assistant_tokens "
        "num_assistant_tokens_schedule target_lookbehind encoder_repetition_penalty",
    ),
    **_because(LABELS, "id2label label2id num_labels problem_type classifier_dropout"),
    **_because(INITIAL, "initializer_range initializer_factor"),
    **_because(DROPOUT, "attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop"),
}

# Of every family: keys that have to be at one value, and what another would mean.
FIXED: dict[str, tuple[Any, str]] = {
    "is_encoder_decoder": (False, "an encoder and a decoder"),
    "tie_encoder_decoder": (False, "an encoder and a decoder"),
    "add_cross_attention": (False, "an encoder's output is attended to"),
    "cross_attention_hidden_size": (None, "an encoder's output is attended to"),
    "pruned_heads": ({}, "heads that were cut out"),
    "per_layer_config": (None, "layers with options of their own"),
    "transformers_weights": (None, "weights in a file of another name"),
    "configuration_files": (None, "a configuration in another file"),
    "quantization_config": (None, "quantised weights"),
}
