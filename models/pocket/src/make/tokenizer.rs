//! The tokenizer: byte-level BPE trained on the corpus, digits one by one, ChatML's three marks first.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer, TokenizerBuilder};

use super::corpus::{Corpus, END_OF_TURN};

pub(crate) const PAD: &str = "<|endoftext|>";
const MARKS: [&str; 3] = [PAD, "<|im_start|>", END_OF_TURN];
/// Conversations that the merges are learnt from.
pub(crate) const SAMPLES: usize = 30_000;
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// Trains on the corpus' first `samples` conversations.
pub(crate) fn train(seed: u64, vocabulary: usize, samples: usize) -> Result<Tokenizer> {
    let mut corpus = Corpus::new(seed)?;
    let mut texts = Vec::with_capacity(samples);
    for _ in 0..samples {
        let sample = corpus.sample()?;
        texts.push(format!(
            "{}\n{}\n{}",
            sample.system, sample.user, sample.answer
        ));
    }
    let digits = PreTokenizerWrapper::Digits(Digits::new(true));
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(
        Sequence::new(vec![digits, PreTokenizerWrapper::ByteLevel(bytes)]).into(),
    ))
    .with_decoder(Some(ByteLevel::default().into()))
    .build()
    .map_err(|error| anyhow!("could not build the tokenizer: {error}"))?;
    let marks: Vec<AddedToken> = MARKS
        .iter()
        .map(|mark| AddedToken::from(*mark, true))
        .collect();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocabulary)
        .show_progress(false)
        .special_tokens(marks.clone())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut trainer, texts.into_iter())
        .map_err(|error| anyhow!("could not train the tokenizer: {error}"))?;
    tokenizer.add_special_tokens(&marks);
    Ok(tokenizer.into())
}

/// Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.
pub(crate) fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let path = folder.join("tokenizer.json");
    tokenizer
        .save(&path, false)
        .map_err(|error| anyhow!("could not write {}: {error}", path.display()))?;
    let added: serde_json::Map<String, serde_json::Value> = MARKS
        .iter()
        .filter_map(|mark| Some((tokenizer.token_to_id(mark)?.to_string(), mark)))
        .map(|(id, mark)| {
            let token = json!({"content": mark, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true});
            (id, token)
        })
        .collect();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "additional_special_tokens": [MARKS[1]],
        "bos_token": null,
        "eos_token": END_OF_TURN,
        "pad_token": PAD,
        "unk_token": null,
        "clean_up_tokenization_spaces": false,
        "model_max_length": super::CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    });
    let map = json!({"eos_token": END_OF_TURN, "pad_token": PAD, "additional_special_tokens": [MARKS[1]]});
    for (name, value) in [
        ("tokenizer_config.json", &config),
        ("special_tokens_map.json", &map),
    ] {
        super::write(
            &folder.join(name),
            &format!("{}\n", serde_json::to_string_pretty(value)?),
        )?;
    }
    Ok(())
}

/// Reads the folder's tokenizer.json.
pub(crate) fn load(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    Tokenizer::from_file(&path)
        .map_err(|error| anyhow!("{}: {error}", path.display()))
        .context("no tokenizer")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::corpus::encode;
    use super::*;

    #[test]
    fn any_text_comes_back_and_digits_stand_alone() {
        let tokenizer = train_small();
        for text in [
            "Order 1034-88, naïve café ☕!",
            "{\"a\": null, \"b\": \"x y\"}",
            "  two  spaces\n\n",
        ] {
            let ids = encode(&tokenizer, text).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
        let digits = encode(&tokenizer, "2026").unwrap();
        assert_eq!(digits.len(), 4);
        assert_eq!(encode(&tokenizer, "<|im_end|>").unwrap().len(), 1);
    }

    fn train_small() -> Tokenizer {
        let tokenizer = train(1, 400, 300).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 400);
        tokenizer
    }
}
