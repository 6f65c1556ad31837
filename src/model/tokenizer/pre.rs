//! What a GGUF file's `tokenizer.ggml.pre` stands for, as data.
//!
//! GGUF stores a byte-level vocabulary and its merges, but only a *name* for the regexes that cut a
//! text into pieces before anything merges. The names and what they stand for follow llama.cpp's
//! `llama-vocab.cpp`, which writes these files. Where its regex is an adaptation for a smaller
//! regex engine, this table has the one of the models' own `tokenizer.json`.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::TokenizerError;

/// The key that names one.
pub(super) const KEY: &str = "tokenizer.ggml.pre";

/// A pre-tokenizer, and what its name settles besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pre {
    names: &'static [&'static str],
    /// Applied one after the other, each within the pieces that the ones before left. What no
    /// regex matches is a piece too.
    splits: &'static [&'static str],
    /// Whether a piece that is a token is not merged.
    pub(super) whole_words: bool,
    /// Whether a prompt begins with the begin-of-text token where the file does not say.
    pub(super) adds_bos: bool,
    /// Whether texts are composed (Unicode NFC) first.
    pub(super) composes: bool,
}

impl Pre {
    const fn new(names: &'static [&'static str], splits: &'static [&'static str]) -> Self {
        Self {
            names,
            splits,
            whole_words: false,
            adds_bos: false,
            composes: false,
        }
    }

    const fn whole_words(self) -> Self {
        Self {
            whole_words: true,
            ..self
        }
    }

    const fn adds_bos(self) -> Self {
        Self {
            adds_bos: true,
            ..self
        }
    }

    const fn composes(self) -> Self {
        Self {
            composes: true,
            ..self
        }
    }

    /// The one that a file names; a file without a name has the default.
    ///
    /// # Errors
    /// If the name is not in the table: a guess would shift token ids silently.
    pub(super) fn named(name: &str) -> Result<Self, TokenizerError> {
        let known = TABLE.iter().find(|pre| pre.names.contains(&name));
        known.copied().ok_or_else(|| TokenizerError::Unsupported {
            place: KEY.into(),
            found: name.into(),
            supported: names().collect::<Vec<_>>().join(", "),
        })
    }

    /// The steps: the splits, then bytes as characters.
    pub(super) fn steps(&self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let mut steps = Vec::with_capacity(self.splits.len() + 1);
        for regex in self.splits {
            steps.push(split(regex)?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

/// Every name of the table.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|pre| pre.names).copied()
}

/// A step that makes every match of a regex a piece of its own.
pub(super) fn split(regex: &str) -> Result<Split, TokenizerError> {
    let pattern = SplitPattern::Regex(regex.into());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| {
        TokenizerError::Malformed {
            place: KEY.into(),
            problem: e.to_string(),
        }
    })
}

/// GPT-2's split: contractions, and words, numbers and signs with the space before them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Every digit.
const DIGIT: &str = r"\p{N}";
/// Groups of three digits, from the right.
const THOUSANDS: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
/// Han characters and kana.
const HAN_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
/// A sign before Latin letters; words with their marks; signs; lines; spaces.
const WORDS_AND_SIGNS: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Bloom's split: anything but punctuation, with the space before it.
const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";

/// Words with one character before them, numbers as given, signs with the lines after them.
macro_rules! words {
    ($numbers:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// Words that also end where lower case turns to upper case, with an ending as given.
macro_rules! cased_words {
    ($ending:literal, $numbers:literal, $lines:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $ending,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $ending,
            "|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+",
            $lines,
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const ONE_DIGIT: &str = words!(r"\p{N}");
const THREE_DIGITS: &str = words!(r"\p{N}{1,3}");
const GPT4O: &str = cased_words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}", r"[\r\n/]*");

/// Latin, Greek and Cyrillic letters of DeepSeek LLM's first split.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ",
    r"ὐ-ὗὙὛὝὟ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ",
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);

/// The pre-tokenizers by name.
const TABLE: &[Pre] = &[
    // The default of files from before pre-tokenizers had names.
    Pre::new(
        &["default"],
        &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    ),
    Pre::new(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    Pre::new(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[DIGIT, GPT2],
    ),
    Pre::new(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[THREE_DIGITS],
    )
    .whole_words()
    .adds_bos(),
    Pre::new(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[THREE_DIGITS]),
    Pre::new(&["glm4", "glm5"], &[THREE_DIGITS]).whole_words(),
    Pre::new(&["qwen2", "deepseek-r1-qwen"], &[ONE_DIGIT]).composes(),
    Pre::new(
        &[
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[ONE_DIGIT],
    ),
    Pre::new(
        &["qwen35"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Pre::new(&["tekken"], &[cased_words!("", r"\p{N}", r"[\r\n/]*")])
        .whole_words()
        .adds_bos(),
    Pre::new(
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &[GPT4O],
    ),
    Pre::new(&["granite-embed-multi-97m"], &[GPT4O]).whole_words(),
    Pre::new(&["tiny_aya", "cohere2moe"], &[THOUSANDS, GPT4O]),
    Pre::new(&["minicpm5"], &[r"\p{N}{1,3}", words!(r"\p{N}+")]).whole_words(),
    Pre::new(
        &["jais-2"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|",
            r"\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
    ),
    Pre::new(
        &["seed-coder"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Pre::new(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    Pre::new(
        &["exaone-moe"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    // Turkish suffixes stay with their apostrophe: no contractions.
    Pre::new(
        &["ufakzeka"],
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Pre::new(&["laguna"], &[r"[^\n]+|[\n]+", ONE_DIGIT]),
    Pre::new(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        ],
    ),
    Pre::new(
        &["deepseek-coder"],
        &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-퟿]+",
            DIGIT,
        ],
    ),
    Pre::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", HAN_KANA, WORDS_AND_SIGNS],
    ),
    Pre::new(
        &["spark2_5"],
        &[
            r"\p{N}{1,3}",
            HAN_KANA,
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
                r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
            ),
            DIGIT,
        ],
    ),
    Pre::new(
        &["afmoe"],
        &[
            THOUSANDS,
            "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
            WORDS_AND_SIGNS,
        ],
    ),
    Pre::new(
        &["youtu"],
        &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            cased_words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}", r"[\r\n/]*"),
        ],
    )
    .whole_words(),
    Pre::new(
        &["kimi-k2"],
        &[concat!(
            r"[\p{Han}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    Pre::new(
        &["falcon"],
        &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    ),
    Pre::new(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    Pre::new(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    Pre::new(&["viking"], &[BLOOM, DIGIT]),
    Pre::new(
        &["chameleon"],
        &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
    )
    .adds_bos(),
];
