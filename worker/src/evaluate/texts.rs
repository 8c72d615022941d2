//! Metrics of answers in words: exact match, F1, ROUGE and BLEU.

use std::collections::HashMap;

/// Lower case, without punctuation, articles and extra spaces, as SQuAD's script has it (Rajpurkar et al., 2016).
pub(super) fn normalized(text: &str) -> String {
    let plain: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .collect();
    plain.split(' ').filter(|word| !word.is_empty() && !["a", "an", "the"].contains(word)).collect::<Vec<_>>().join(" ")
}

/// F1 over the words of normalized texts, as SQuAD's script has it.
pub(super) fn word_f1(found: &str, expected: &str) -> f64 {
    let (found, expected) = (normalized(found), normalized(expected));
    let (found, expected): (Vec<_>, Vec<_>) = (found.split_whitespace().collect(), expected.split_whitespace().collect());
    if found.is_empty() || expected.is_empty() {
        return f64::from(u8::from(found == expected));
    }
    harmonic(overlap(&counts(&found, 1), &counts(&expected, 1)), found.len(), expected.len())
}

/// Words of ROUGE (Lin, 2004) as the `rouge_score` package splits them: runs of ASCII letters and digits of the lower-case text.
fn rouge_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// ROUGE-N's F measure, without a stemmer.
pub(super) fn rouge_n(found: &str, expected: &str, n: usize) -> f64 {
    let (found, expected) = (rouge_words(found), rouge_words(expected));
    let (a, b) = (counts(&found, n), counts(&expected, n));
    harmonic(overlap(&a, &b), a.values().sum(), b.values().sum())
}

/// ROUGE-L's F measure over the whole texts, without a stemmer.
pub(super) fn rouge_l(found: &str, expected: &str) -> f64 {
    let (found, expected) = (rouge_words(found), rouge_words(expected));
    let mut row = vec![0usize; expected.len() + 1];
    for a in &found {
        let mut corner = 0;
        for (column, b) in expected.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = if a == b { corner + 1 } else { above.max(row[column]) };
            corner = above;
        }
    }
    harmonic(row[expected.len()], found.len(), expected.len())
}

/// What BLEU (Papineni et al., 2002) counts of one answer: matches and n-grams for n from 1 to 4, the answer's and the nearest reference's lengths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BleuCounts {
    matches: [usize; 4],
    grams: [usize; 4],
    found: usize,
    expected: usize,
}

impl BleuCounts {
    pub(super) fn of(found: &str, references: &[String]) -> Self {
        let found = bleu_words(found);
        let references: Vec<_> = references.iter().map(|text| bleu_words(text)).collect();
        let mut this = Self { found: found.len(), ..Self::default() };
        this.expected = references.iter().map(Vec::len).min_by_key(|&length| (length.abs_diff(found.len()), length)).unwrap_or(0);
        for n in 1..=4 {
            let grams = counts(&found, n);
            let mut most: HashMap<&[String], usize> = HashMap::new();
            for reference in &references {
                for (gram, count) in counts(reference, n) {
                    let most = most.entry(gram).or_default();
                    *most = count.max(*most);
                }
            }
            this.matches[n - 1] = overlap(&grams, &most);
            this.grams[n - 1] = grams.values().sum();
        }
        this
    }

    /// BLEU over several answers, in [0, 1], smoothed as sacrebleu's default does: the k-th n without a match counts as half of the one before.
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    pub(super) fn bleu(all: impl Iterator<Item = Self>) -> f64 {
        let mut sum = Self::default();
        for one in all {
            for n in 0..4 {
                sum.matches[n] += one.matches[n];
                sum.grams[n] += one.grams[n];
            }
            sum.found += one.found;
            sum.expected += one.expected;
        }
        if sum.matches.iter().all(|&matches| matches == 0) {
            return 0.0;
        }
        let (mut log, mut smooth) = (0.0, 1.0);
        for (&matches, &grams) in sum.matches.iter().zip(&sum.grams) {
            if grams == 0 {
                return 0.0;
            }
            let matches = if matches == 0 {
                smooth *= 2.0;
                1.0 / smooth
            } else {
                matches as f64
            };
            log += libm::log(matches / grams as f64) / 4.0;
        }
        let short = sum.found < sum.expected;
        let brevity = if short { 1.0 - sum.expected as f64 / sum.found.max(1) as f64 } else { 0.0 };
        libm::exp(log + brevity)
    }
}

/// Words of BLEU by mteval's 13a rules: punctuation apart, but for points and commas within numbers.
fn bleu_words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut spaced = String::new();
    for (index, &c) in chars.iter().enumerate() {
        let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(char::is_ascii_digit);
        let (before, after) = (digit(index.checked_sub(1)), digit(Some(index + 1)));
        let apart = match c {
            '.' | ',' => !(before && after),
            '-' => before,
            c => c.is_ascii_punctuation() && c != '\'',
        };
        if apart {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced.split_whitespace().map(str::to_owned).collect()
}

fn counts<T: std::hash::Hash + Eq>(words: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

fn overlap<T: std::hash::Hash + Eq>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(gram, count)| *count.min(b.get(gram).unwrap_or(&0))).sum()
}

/// F1 from hits and both sides' counts.
fn harmonic(hits: usize, found: usize, expected: usize) -> f64 {
    super::scoring::f1(hits as u64, found as u64, expected as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_as_squad_does() {
        assert_eq!(normalized("The  Cat's  a\tHat!"), "cats hat");
        assert!((word_f1("the cat sat", "a cat sat down") - 0.8).abs() < 1e-12);
        assert_eq!(word_f1("", "x"), 0.0);
        assert_eq!(word_f1("", "the"), 1.0);
    }

    #[test]
    fn rouge_and_bleu_agree_with_their_packages() {
        // rouge_score 0.1.2: RougeScorer(["rouge1", "rouge2", "rougeL"]) and sacrebleu 2: corpus_bleu(...).score / 100 of the same texts.
        let (found, expected) = ("The quick brown fox jumps over the dog.", "The fast brown fox jumped over the lazy dog.");
        assert!((rouge_n(found, expected, 1) - 12.0 / 17.0).abs() < 1e-12);
        assert!((rouge_n(found, expected, 2) - 4.0 / 15.0).abs() < 1e-12);
        assert!((rouge_l(found, expected) - 12.0 / 17.0).abs() < 1e-12);
        let bleu = |pairs: &[(&str, &str)]| {
            BleuCounts::bleu(pairs.iter().map(|(found, expected)| BleuCounts::of(found, &[(*expected).to_owned()])))
        };
        assert!((bleu(&[(found, expected)]) - 0.153_596_718_654_210_93).abs() < 1e-12);
        let second = ("It costs 1,000.50 dollars, he said.", "It cost 1,000.50 dollars, she said loudly.");
        assert!((bleu(&[(found, expected), second]) - 0.153_606_048_568_273_28).abs() < 1e-12);
        assert_eq!(bleu(&[("a b", "a b c d e")]), 0.0);
        assert!((bleu(&[(found, found)]) - 1.0).abs() < 1e-12);
        assert_eq!(bleu_words("It's 1,000.50, a-b 3-4."), ["It's", "1,000.50", ",", "a-b", "3", "-", "4", "."]);
    }
}
