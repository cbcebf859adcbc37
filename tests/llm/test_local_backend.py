"""The in-process backend on a tiny random model, against plain forward passes of the same model."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.qwen2 import Qwen2ForCausalLM

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backend import Choose, Complete, Fill, FinalFailure, Reply, Request, Weigh
from autointerp.llm.backends.local import LocalBackend, weights_hash
from autointerp.llm.backends.local_model import LocalModel
from autointerp.records import Message

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role[0] }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SHAPE: dict[str, object] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 3,
    "pad_token_id": 3,
}
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TEN = [str(n) for n in range(11)]


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """A token a character, so that "10" is "1" and "0" as with Qwen and SmolLM."""
    specials = ["<s>", "<u>", "<a>", "<end>"]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate([*specials, *LETTERS])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<end>", additional_special_tokens=specials[:3]
    )
    made.chat_template = template
    return made


def save(folder: Path, kind: str = "qwen2", template: str = TEMPLATE, **changes: object) -> Path:
    torch.manual_seed(0)
    shape = SHAPE | changes
    model = Qwen2ForCausalLM(Qwen2Config(**shape)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**shape))  # type: ignore[arg-type]
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # random weights give flat answers; these have opinions
        # and write printable characters, which text and tokens tell alike
        model.lm_head.weight[[0, 1, 2, *(i for i, c in enumerate(LETTERS, start=4) if not "!" <= c <= "~")]] = 0
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tiny"))


def config(**changes: object) -> LLMConfig:
    return LLMConfig.model_validate({"model": "tiny", "dtype": "float32", "device": "cpu", **changes})


@pytest.fixture
async def backend(folder: Path):
    made = LocalBackend(folder, config())
    await made.start()
    yield made
    await made.close()


class Plain:
    """The same model one sequence at a time, without any cache."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def next(self, text: str) -> torch.Tensor:
        return self.model(torch.tensor([self.ids(text)])).logits[0, -1].softmax(-1)

    def says(self, prompt: str, answer: str) -> float:
        p = 1.0
        for i, token in enumerate(self.ids(answer)):
            p *= self.next(prompt + answer[:i])[token].item()
        return p

    def greedy(self, prompt: str, count: int) -> str:
        text = ""
        for _ in range(count):
            token = int(self.next(prompt + text).argmax())
            if token == 3:
                break
            text += self.tokenizer.decode([token])
        return text


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(folder, config())


def user(text: str) -> list[Message]:
    return [Message("system", "Say how much it is so, from 0 to 10."), Message("user", text)]


def shown(messages: list[Message]) -> str:
    return "".join(f"<{m.role[0]}>{m.content}<end>" for m in messages) + "<a>"


def odds(reply: Reply, slot: int = 0) -> tuple[float, ...]:
    probabilities = reply.choices[slot].probabilities
    assert probabilities is not None
    return probabilities


async def complete(backend: LocalBackend, text: str, **changes: object) -> Reply:
    return await reply(backend, Complete(user(text), **{"max_tokens": 12, **changes}))  # type: ignore[arg-type]


async def reply(backend: LocalBackend, request: Request) -> Reply:
    """What is read from the answer after its stay in the cache, where it is JSON."""
    return backend.read(json.loads(json.dumps(await backend.ask(request))), request)


async def choose(backend: LocalBackend, messages: list[Message], answers: list[str]) -> Reply:
    return await reply(backend, Choose(messages, answers))


# --- choose and fill


async def test_choose_follows_the_chain_rule_and_tells_1_from_10(backend: LocalBackend, plain: Plain):
    choices = (await choose(backend, user("some text"), TEN)).choices[0]
    prompt = shown(user("some text"))
    expected = [plain.says(prompt, answer) for answer in TEN]
    expected[1] -= expected[10]
    assert choices.mass == pytest.approx(sum(expected), rel=1e-3)
    assert choices.probabilities == pytest.approx([p / sum(expected) for p in expected], abs=1e-4)


async def test_choose_takes_answers_of_several_tokens(backend: LocalBackend, plain: Plain):
    answers = ["yes", "yet", "no", "not"]
    got = odds(await choose(backend, user("a"), answers))
    expected = [plain.says(shown(user("a")), answer) for answer in answers]
    expected[2] -= expected[3]
    assert got == pytest.approx([p / sum(expected) for p in expected], abs=1e-4)


async def test_fill_reads_each_slot_as_if_it_were_asked_alone(backend: LocalBackend, plain: Plain):
    segments = ["the\t", "\ncat\t", "", " sat\t"]
    filled = await reply(backend, Fill(user("rate"), segments, "10", TEN))
    assert len(filled.choices) == len(segments)
    before = shown(user("rate"))
    for i, segment in enumerate(segments):
        before += ("10" if i else "") + segment
        expected = [plain.says(before, answer) for answer in TEN]
        expected[1] -= expected[10]
        assert odds(filled, i) == pytest.approx([p / sum(expected) for p in expected], abs=1e-4)


async def test_weigh_is_the_chain_rule_along_the_text(backend: LocalBackend, plain: Plain):
    texts = ["the cat sat", "the", "zq the the"]
    weighed = await asyncio.gather(*(reply(backend, Weigh(user("write"), text)) for text in texts))
    for text, said in zip(texts, weighed):
        assert said.weight is not None
        assert said.weight.logprob == pytest.approx(math.log(plain.says(shown(user("write")), text)), abs=1e-3)
        assert said.weight.tokens == len(plain.ids(text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_choose_is_the_same_alone_and_in_company(folder: Path, dtype: str):
    texts = ["x", "some longer text", "some other text that goes on", "some longer text still", "zz" * 40]
    alone = []
    for text in texts:
        backend = LocalBackend(folder, config(dtype=dtype))
        await backend.start()
        alone.append(odds(await choose(backend, user(text), TEN)))
        await backend.close()
    backend = LocalBackend(folder, config(dtype=dtype, batch=4))
    await backend.start()
    for _ in range(2):  # the second time from kept beginnings
        replies = await asyncio.gather(*(choose(backend, user(text), TEN) for text in texts))
        for reply, expected in zip(replies, alone):
            assert odds(reply) == pytest.approx(expected, abs=1e-4 if dtype == "float32" else 1e-2)
    await backend.close()


async def test_bfloat16_judgements_are_not_rounded_to_bfloat16_logits(folder: Path):
    backend = LocalBackend(folder, config(dtype="bfloat16"))
    await backend.start()
    got = odds(await choose(backend, user("some text"), ["0", "1", "2"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor([backend._model.chat(user("some text"))])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, -1].float()
    logits = (model.lm_head.weight.float() @ hidden)[[backend._model.encode(answer)[0] for answer in "012"]]
    assert got == pytest.approx(logits.softmax(-1).tolist(), abs=2e-3)
    assert got != pytest.approx(logits.bfloat16().float().softmax(-1).tolist(), abs=1e-6)
    await backend.close()


async def test_answers_that_cannot_be_told_apart_are_refused(backend: LocalBackend):
    for answers in ([], ["a", ""], ["a", "a"]):
        with pytest.raises(ValueError, match="distinct"):
            await choose(backend, user("a"), answers)


# --- shared beginnings


async def test_shared_beginnings_are_computed_once(backend: LocalBackend):
    texts = [f"{feature} {example}" for feature in ("about food", "about rain") for example in range(4)]
    replies = await asyncio.gather(*(choose(backend, user(text), ["0", "1"]) for text in texts))
    prompts = [tuple(backend._model.encode(shown(user(text)), controls=True)) for text in texts]
    computed = sum(reply.prompt_tokens - reply.cached_tokens for reply in replies)
    assert computed == len({prompt[:n] for prompt in prompts for n in range(1, len(prompt) + 1)})


async def test_later_request_is_served_from_a_kept_beginning(backend: LocalBackend):
    await choose(backend, user("about food: apples"), ["0", "1"])
    got = await choose(backend, user("about food: houses"), ["0", "1"])
    assert got.prompt_tokens - got.cached_tokens == len("houses") + len(["<end>", "<a>"])
    again = await choose(backend, user("about food: apples"), ["0", "1"])
    assert again.prompt_tokens - again.cached_tokens == 1  # the last token's logits must be computed


async def test_long_prompts_that_are_kept_are_not_computed_again_for_being_asked_together(backend: LocalBackend):
    texts = [letter * 120 for letter in "abc"]
    await asyncio.gather(*(choose(backend, user(text), ["0", "1"]) for text in texts))
    for text in texts:  # each alone, so that all of it is kept
        await choose(backend, user(text), ["0", "1"])
    replies = await asyncio.gather(*(choose(backend, user(text), ["0", "1"]) for text in texts))
    assert [reply.prompt_tokens - reply.cached_tokens for reply in replies] == [1, 1, 1]


async def test_requests_that_begin_alike_go_together(folder: Path, monkeypatch: pytest.MonkeyPatch):
    backend = LocalBackend(folder, config(batch=2))
    await backend.start()
    batches = []
    inner = backend._passes.answer
    monkeypatch.setattr(
        backend._passes, "answer", lambda jobs: (batches.append({job.tokens for job in jobs}), inner(jobs))[1]
    )
    texts = ["food: a", "rain: a", "food: b", "rain: b"]
    await asyncio.gather(*(choose(backend, user(text), ["0", "1"]) for text in texts))
    tokens = {text: tuple(backend._model.encode(shown(user(text)), controls=True)) for text in texts}
    assert batches == [{tokens["food: a"], tokens["food: b"]}, {tokens["rain: a"], tokens["rain: b"]}]
    await backend.close()


# --- complete


async def test_greedy_completions_of_a_batch_are_those_of_the_model(backend: LocalBackend, plain: Plain):
    texts = ["once", "a much longer prompt than the others have", "upon a time"]
    replies = await asyncio.gather(*(complete(backend, text, max_tokens=5 + i) for i, text in enumerate(texts)))
    for i, (text, reply) in enumerate(zip(texts, replies)):
        assert reply.text == plain.greedy(shown(user(text)), 5 + i)
        assert reply.truncated == (len(reply.text) == 5 + i)


async def test_sampling_depends_on_the_seed_and_not_on_company(backend: LocalBackend):
    alone = (await complete(backend, "once", temperature=1.0, seed=7)).text
    asked = [complete(backend, "once", temperature=1.0, seed=seed) for seed in range(5, 10)]
    together = [reply.text for reply in await asyncio.gather(*asked)]
    assert together[2] == alone
    assert len(set(together)) > 1


async def test_stop_string_ends_the_answer_before_it(backend: LocalBackend, plain: Plain):
    whole = plain.greedy(shown(user("once")), 12)
    stop = whole[4:6]
    got = await complete(backend, "once", stop=["never said", stop])
    assert got.text == whole[: whole.index(stop)]
    assert not got.truncated


async def test_rows_that_end_early_leave_the_others_as_they_were(backend: LocalBackend, plain: Plain):
    lengths = [1, 2, 3, 20]
    replies = await asyncio.gather(*(complete(backend, f"text {n}", max_tokens=n) for n in lengths))
    for n, reply in zip(lengths, replies):
        assert reply.text == plain.greedy(shown(user(f"text {n}")), n)


# --- other architectures and templates


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
async def test_architecture_gives_its_own_answers(tmp_path: Path, kind: str, changes: dict[str, object]):
    folder = save(tmp_path, kind, **changes)
    backend, plain = LocalBackend(folder, config()), Plain(folder)
    await backend.start()
    texts = ["a", "some longer text"]
    replies = await asyncio.gather(*(choose(backend, user(text), ["0", "1", "2"]) for text in texts))
    for text, reply in zip(texts, replies):
        expected = [plain.says(shown(user(text)), answer) for answer in ("0", "1", "2")]
        assert odds(reply) == pytest.approx([p / sum(expected) for p in expected], abs=1e-4)
    for text in texts:
        assert (await complete(backend, text)).text == plain.greedy(shown(user(text)), 12)
    await backend.close()


async def test_template_without_a_system_role_gets_its_text_before_the_users(tmp_path: Path):
    backend = LocalBackend(save(tmp_path, template=TEMPLATE.replace("'tool'", "'system'")), config())
    await backend.start()
    assert backend._model.chat(user("hi")) == backend._model.chat([Message("user", user("hi")[0].content + "\n\nhi")])
    await backend.close()


# --- what goes wrong


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from(["<s>", "<u>", "<a>", "<end>", "a", "<", ">", " ", "\n", "é"])).map("".join))
def test_a_text_that_names_control_tokens_ends_no_turn(model: LocalModel, text: str):
    opened, end, answer = model.chat([Message("user", "")])
    assert model.chat([Message("user", text)]) == (opened, *model.encode(text), end, answer)
    assert model.decode(model.encode(text)) == text
    assert not {0, 1, 2, 3} & {*model.encode(text)}, "the four control tokens"


async def test_prompt_that_does_not_fit_fails_for_good_and_says_so(backend: LocalBackend):
    with pytest.raises(FinalFailure, match="takes 256: show fewer or shorter examples"):
        await choose(backend, user("x" * 300), ["0", "1"])
    with pytest.raises(FinalFailure, match="and 250 for the answer"):
        await complete(backend, "x", max_tokens=250)


async def test_out_of_memory_halves_the_batch_once(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch):
    inner, sizes = backend._passes.run, []

    def run(jobs, limit=4):
        sizes.append(len(jobs))
        if len(jobs) > limit:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return inner(jobs)

    monkeypatch.setattr(backend._passes, "run", run)
    replies = await asyncio.gather(*(choose(backend, user(str(n)), TEN) for n in range(8)))
    assert len(replies) == 8
    assert sizes == [8, 4, 4]
    await asyncio.gather(*(choose(backend, user(str(n)), TEN) for n in range(8)))
    assert sizes == [8, 4, 4, 4, 4]  # it has learnt
    monkeypatch.setattr(backend._passes, "run", lambda jobs: run(jobs, limit=1))
    with pytest.raises(AutointerpError, match=r"lower llm\.batch"):
        await asyncio.gather(*(choose(backend, user(str(n)), TEN) for n in range(8)))


async def test_error_in_the_worker_reaches_the_asker_and_the_next_request_is_answered(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(backend._passes, "run", lambda jobs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await choose(backend, user("a"), TEN)
    assert (await choose(backend, user("a"), TEN)).choices


async def test_cancelled_request_leaves_the_others_alone_and_close_ends_what_runs(folder: Path):
    backend = LocalBackend(folder, config())
    await backend.start()
    gone = asyncio.create_task(complete(backend, "gone", max_tokens=200))
    stays = asyncio.create_task(complete(backend, "stays", max_tokens=3))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).text
    late = asyncio.create_task(complete(backend, "late", max_tokens=200))
    await asyncio.sleep(0)
    await backend.close()
    with pytest.raises(asyncio.CancelledError):
        await late


async def test_folder_without_a_model_or_template_is_one_clear_error(tmp_path: Path):
    with pytest.raises(AutointerpError, match=r"it has no config\.json"):
        await LocalBackend(tmp_path, config()).start()
    save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(AutointerpError, match="take an instruct model"):
        await LocalBackend(tmp_path, config()).start()


async def test_architecture_that_cannot_be_packed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LocalModel, "masks", lambda self, mask, at, before: None)  # a model that heeds no mask
    with pytest.raises(AutointerpError, match="serve it with vLLM"):
        await LocalBackend(folder, config()).start()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.2])
def test_probabilities_that_cannot_be_are_a_reason_and_no_number(folder: Path, value: float):
    raw = {"answers": [[1], [2]], "reads": [[[[1], 0.5], [[2], value]]]}
    raw |= {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}
    got = LocalBackend(folder, config()).read(raw, Choose(user("a"), ["yes", "no"]))
    assert got.choices[0].probabilities is None
    assert "try llm.dtype float32" in (got.choices[0].failure or "")


# --- identity


def test_identity_changes_with_weights_template_and_dtype_only(tmp_path: Path, folder: Path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    same = LocalBackend(folder, config()).identity
    assert LocalBackend(copy, config(batch=3, model="other name")).identity == same
    assert LocalBackend(copy, config(dtype="bfloat16")).identity != same
    (copy / "chat_template.jinja").write_text(TEMPLATE + " ")
    changed = LocalBackend(copy, config()).identity
    assert changed != same
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    touched = LocalBackend(copy, config()).identity
    assert touched not in (same, changed)
    (copy / "catalog.json").write_text(json.dumps({"sha256": {"model": "1"}, "fetched": "today"}))
    listed = LocalBackend(copy, config()).identity
    (copy / "catalog.json").write_text(json.dumps({"sha256": {"model": "1"}, "fetched": "tomorrow"}))
    assert LocalBackend(copy, config()).identity == listed
    assert weights_hash(copy) in listed
