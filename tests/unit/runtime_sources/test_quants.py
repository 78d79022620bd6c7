"""Which files of a repository make the model that is meant."""

import pytest

from stentor.runtime.quants import NoSuchFile, RepoFile, choose_files, is_projector, list_variants, read_quant


def files(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 10, f"sha256:{path}") for path in paths]


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_M", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1", "Q4_1"),
        ("qwen2.5-0.5b-instruct-q8_0", "Q8_0"),
        ("gemma-3-4b-it-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Llama-3.2-1B-Instruct-IQ3_XXS", "IQ3_XXS"),
        ("gpt-oss-20b-MXFP4", "MXFP4"),
        ("model_Q5_K_S_final", "Q5_K_S"),
        ("Q6_K/Model-00001-of-00002", "Q6_K"),
        ("model-bf16", "BF16"),
        ("ggml-model-f16", "F16"),
        ("model-TQ1_0", "TQ1_0"),
        ("Qwen3-8B", ""),
        ("phi-4", ""),
    ],
)
def test_names_tell_the_quantization(path, quant):
    assert read_quant(path) == quant


@pytest.mark.parametrize("name", ["mmproj-model-f16.gguf", "Tiny-mmproj.gguf", "d/mmproj.gguf", "x.mm-proj-Q8_0.gguf"])
def test_projectors_are_no_models(name):
    assert is_projector(name)
    assert list_variants(files(name, "imatrix-x.gguf", "readme.md")) == []


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], "m-Q4_K_M.gguf"),
        (["m-Q2_K.gguf", "m-Q4_K_S.gguf", "m-Q5_K_M.gguf"], "m-Q4_K_S.gguf"),
        (["m-Q8_0.gguf", "m-F16.gguf"], "m-Q8_0.gguf"),
        (["m-Q3_K_S.gguf", "m-Q6_K.gguf"], "m-Q3_K_S.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q6_K.gguf"], "m-UD-Q4_K_XL.gguf"),
        (["m.gguf"], "m.gguf"),
        (["m.gguf", "m-F32.gguf"], "m-F32.gguf"),
    ],
)
def test_without_a_wish_the_nearest_to_q4_k_m_is_taken(there, chosen):
    assert choose_files("o/r", files(*there)).variant.name == chosen


def test_a_wish_is_taken_exactly():
    there = files("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q2_K_XL.gguf")
    assert choose_files("o/r", there, "q4_k_s").variant.name == "m-Q4_K_S.gguf"
    assert choose_files("o/r", there, "Q2_K_XL").variant.name == "m-UD-Q2_K_XL.gguf"
    with pytest.raises(NoSuchFile, match=r"has no 'Q4_K'. It has: UD-Q2_K_XL, Q4_K_S, Q4_K_M."):
        choose_files("o/r", there, "Q4_K")


def test_the_projector_of_the_same_folder_comes_first_and_f16_before_others():
    there = files("a/m-Q4_0.gguf", "a/mmproj-q8_0.gguf", "mmproj-f16.gguf", "b/mmproj-f16.gguf")
    assert choose_files("o/r", there).projector.path == "a/mmproj-q8_0.gguf"
    there = files("m-Q4_0.gguf", "mmproj-f32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf")
    assert choose_files("o/r", there).projector.path == "mmproj-F16.gguf"


def test_two_models_of_one_quantization_must_be_named():
    there = files("a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    with pytest.raises(NoSuchFile, match=r"more than one such model.*hf:o/r#a-Q4_K_M.gguf"):
        choose_files("o/r", there)
    assert choose_files("o/r", there, filename="b-Q4_K_M.gguf").variant.name == "b-Q4_K_M.gguf"


def test_a_repository_without_models_says_what_it_has():
    with pytest.raises(NoSuchFile, match=r"holds no GGUF model .*safetensors"):
        choose_files("o/r", files("model.safetensors", "config.json"))
