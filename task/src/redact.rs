//! Personal data out of what is kept: found by its shape, and replaced by something of the same shape.
//!
//! A surrogate is another e-mail address, card number (with its check digit), phone number, …: what a format asks of the original holds of it
//! too. Within a conversation the same original gives the same surrogate, so that an answer still repeats what its prompt says; in
//! another one it gives another, so that nobody is followed through the log. Surrogates come from a secret and cannot be undone.
//!
//! Only what can be told by its shape is found. Names and addresses are not.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use sha2::{Digest, Sha256};

/// A kind of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sensitive {
    /// An e-mail address.
    Email,
    /// The number of a payment card: 13 to 19 digits that pass Luhn's check (ISO/IEC 7812-1).
    Card,
    /// A bank account's number that passes the check modulo 97 (ISO 13616).
    Iban,
    /// An IPv4 or IPv6 address.
    Ip,
    /// A phone number: international with `+` or `00`, or national with its separators.
    Phone,
    /// A key or token, by what well-known issuers' begin with; a private key in PEM.
    Secret,
}

impl Sensitive {
    /// All, those first that others' shapes could be taken for.
    pub const ALL: [Self; 6] = [
        Self::Secret,
        Self::Email,
        Self::Iban,
        Self::Card,
        Self::Ip,
        Self::Phone,
    ];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Phone => "phone",
            Self::Secret => "secret",
        }
    }

    fn shape(self) -> &'static Regex {
        let at = Self::ALL.iter().position(|kind| *kind == self);
        &SHAPES[at.unwrap_or_default()]
    }

    /// The part of a match that is one, if any is: the whole, or without its last groups, which may be another number.
    fn confirmed(self, text: &str, found: Range<usize>) -> Option<Range<usize>> {
        let mut ends = vec![found.end];
        if matches!(self, Self::Iban | Self::Card | Self::Phone) {
            let said = &text[found.clone()];
            let groups = said.match_indices(' ').map(|(at, _)| found.start + at);
            ends.extend(groups.rev());
        }
        let ranges = ends.into_iter().map(|end| found.start..end);
        ranges.into_iter().find(|range| self.is_one(text, range))
    }

    fn is_one(self, text: &str, range: &Range<usize>) -> bool {
        let said = &text[range.clone()];
        let before = text[..range.start].chars().next_back();
        let mut rest = text[range.end..].chars();
        let (after, further) = (rest.next(), rest.next());
        let is_part = |c: Option<char>, more: &str| {
            c.is_some_and(|c| c.is_alphanumeric() || more.contains(c))
        };
        match self {
            Self::Email | Self::Secret => true,
            Self::Iban => !is_part(before, "") && !is_part(after, "") && is_iban(said),
            Self::Card => !is_part(before, "-.+") && !is_part(after, "-") && is_card(said),
            Self::Ip if said.contains('.') => {
                // A version with five parts is none.
                let goes_on = after == Some('.') && further.is_some_and(|c| c.is_ascii_digit());
                !is_part(before, ".")
                    && !is_part(after, "-")
                    && !goes_on
                    && said.parse::<Ipv4Addr>().is_ok()
            }
            Self::Ip => {
                !is_part(before, ".:") && !is_part(after, ":") && said.parse::<Ipv6Addr>().is_ok()
            }
            Self::Phone => {
                // None begins in the middle of another number's groups.
                let earlier = text[..range.start].strip_suffix(' ').unwrap_or_default();
                let goes_on = earlier.ends_with(|c: char| c.is_ascii_digit())
                    && !said.starts_with(['+', '(']);
                !goes_on && !is_part(before, "-./+_#") && !is_part(after, "-_") && is_phone(said)
            }
        }
    }
}

/// In the order of [`Sensitive::ALL`]. Each is linear in the text, as all of this crate's are.
static SHAPES: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        // Issuers' own documentation: OpenAI, Anthropic, GitHub, GitLab, AWS, Google, Slack, Stripe, Hugging Face, npm, PyPI, SendGrid,
        // Retune; a JSON web token (RFC 7519); PEM (RFC 7468); what stands behind `Bearer`.
        concat!(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]*?-----END (?:[A-Z]+ )*PRIVATE KEY-----",
            r"|\b(?:sk-(?:ant-|proj-|or-|svcacct-)?[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}",
            r"|glpat-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}",
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|[sr]k_(?:live|test)_[0-9A-Za-z]{16,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}",
            r"|pypi-[A-Za-z0-9_-]{50,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|rt-[a-z0-9]{8}-[0-9a-f]{64}",
            r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})",
        ),
        // RFC 5322's addr-spec as people write it.
        r"[A-Za-z0-9][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}",
        r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?",
        r"[0-9](?:[ -]?[0-9]){12,18}",
        r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?:[0-9A-Fa-f]{1,4})?(?::{1,2}[0-9A-Fa-f]{1,4}){1,7}(?:::)?|[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,6}::",
        r"(?:\+|\(\+?)?[0-9](?:[ ()./-]{0,2}[0-9]){6,16}",
    ];
    patterns
        .iter()
        .filter_map(|pattern| Regex::new(pattern).ok())
        .collect()
});

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> + '_ {
    text.chars().filter_map(|c| c.to_digit(10))
}

/// Luhn's check: ISO/IEC 7812-1, annex B.
fn luhn(text: &str) -> u32 {
    let doubled = |(place, digit): (usize, u32)| match place % 2 {
        0 => digit,
        _ if digit > 4 => digit * 2 - 9,
        _ => digit * 2,
    };
    digits(text).rev().enumerate().map(doubled).sum::<u32>() % 10
}

fn is_card(text: &str) -> bool {
    let separators: Vec<char> = text.chars().filter(|c| !c.is_ascii_digit()).collect();
    // Issuers' ranges begin with 2 to 6, UATP's with 1; nobody mixes separators.
    let begins = text.starts_with(['2', '3', '4', '5', '6']);
    let is_one_kind = separators.windows(2).all(|pair| pair[0] == pair[1]);
    // Groups of fewer than three are no card's.
    let groups = text.split([' ', '-']).all(|group| group.len() >= 3);
    begins && is_one_kind && groups && luhn(text) == 0
}

/// What is left of an account's number modulo 97: ISO 7064, MOD 97-10.
fn mod_97(text: &str) -> u32 {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    let (head, tail) = plain.split_at(4.min(plain.len()));
    tail.chars().chain(head.chars()).fold(0, |rest, c| {
        let value = c.to_digit(36).unwrap_or_default();
        (rest * if value > 9 { 100 } else { 10 } + value) % 97
    })
}

fn is_iban(text: &str) -> bool {
    let length = text.chars().filter(|c| *c != ' ').count();
    (15..=34).contains(&length) && mod_97(text) == 1
}

fn is_phone(text: &str) -> bool {
    let count = digits(text).count();
    let is_international =
        text.starts_with('+') || text.starts_with("(+") || (text.starts_with("00") && count >= 10);
    if is_international {
        return (8..=15).contains(&(count - if text.starts_with("00") { 2 } else { 0 }));
    }
    let groups: Vec<&str> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|g| !g.is_empty())
        .collect();
    // A date (and what follows it), an amount with thousands apart, or a fraction is none.
    let is_year = |g: &&str| g.len() == 4 && (g.starts_with("19") || g.starts_with("20"));
    let is_date = groups.len() > 2
        && groups[..3].iter().filter(|g| is_year(g)).count() == 1
        && groups[..3].iter().all(|g| g.len() <= 2 || is_year(g));
    let is_pointed = text.contains('.') && !text.contains(['(', '-', '/', ' ']);
    let is_amount = is_pointed && (groups.len() == 2 || groups[1..].iter().all(|g| g.len() == 3));
    if is_date || is_amount {
        return false;
    }
    let is_trunk = text.starts_with('0') || text.starts_with("(0");
    // With the trunk prefix, as in most of the world; or in three groups, the first of three digits, as in North America.
    (is_trunk && (9..=12).contains(&count))
        || (count == 10 && groups.len() == 3 && groups[0].len() == 3 && groups[1].len() == 3)
}

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    kinds: Vec<Sensitive>,
    own: Vec<Regex>,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its bytes.
    pub range: Range<usize>,
    /// None: one of the task's own patterns.
    pub kind: Option<Sensitive>,
}

impl Redaction {
    /// These kinds, and what matches one of these regexes; the error is the regex's.
    pub fn new(kinds: &[Sensitive], own: &[String]) -> Result<Self, String> {
        let kinds = Sensitive::ALL
            .into_iter()
            .filter(|kind| kinds.contains(kind));
        let own = own
            .iter()
            .map(|pattern| Regex::new(pattern).map_err(|e| e.to_string()));
        Ok(Self {
            kinds: kinds.collect(),
            own: own.collect::<Result<_, _>>()?,
        })
    }

    /// The kinds that are looked for.
    pub fn kinds(&self) -> &[Sensitive] {
        &self.kinds
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.own.is_empty()
    }

    /// What is in a text, in order, nothing twice: the task's own patterns come first, then the kinds in their order.
    pub fn find(&self, text: &str) -> Vec<Found> {
        // By where they begin: what overlaps another does so with the last that begins before its end.
        let mut found: BTreeMap<usize, Found> = BTreeMap::new();
        let mut add = |range: Range<usize>, kind| {
            let before = found.range(..range.end).next_back();
            let is_free = before.is_none_or(|(_, other)| other.range.end <= range.start);
            if is_free && !range.is_empty() {
                found.insert(range.start, Found { range, kind });
            }
        };
        for regex in &self.own {
            regex.find_iter(text).for_each(|m| add(m.range(), None));
        }
        for kind in &self.kinds {
            let mut from = 0;
            while let Some(m) = kind.shape().find_at(text, from) {
                match kind.confirmed(text, m.range()) {
                    Some(range) => {
                        from = m.end();
                        add(range, Some(*kind));
                    }
                    // It may begin later: "1 4111 1111 1111 1111".
                    None => from = next_start(text, m.start()),
                }
            }
        }
        found.into_values().collect()
    }

    /// The text with surrogates. `secret` is the installation's; `scope` is what they are the same within, a conversation.
    pub fn redact<'a>(&self, text: &'a str, secret: &[u8], scope: &str) -> Cow<'a, str> {
        let found = self.find(text);
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut redacted = String::with_capacity(text.len());
        let mut at = 0;
        for Found { range, kind } in found {
            redacted.push_str(&text[at..range.start]);
            let mut random = Stream::new(secret, scope, &text[range.clone()]);
            redacted.push_str(&surrogate(&text[range.clone()], kind, &mut random));
            at = range.end;
        }
        redacted.push_str(&text[at..]);
        Cow::Owned(redacted)
    }
}

/// Behind the run of letters and digits that begins here.
fn next_start(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let run = rest
        .find(|c: char| !c.is_alphanumeric())
        .unwrap_or(rest.len());
    let first = rest.chars().next().map_or(1, char::len_utf8);
    at + run.max(first)
}

/// Numbers that only the secret tells.
struct Stream {
    seed: [u8; 32],
    block: [u8; 32],
    used: usize,
    count: u64,
}

impl Stream {
    fn new(secret: &[u8], scope: &str, original: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [secret, scope.as_bytes(), original.as_bytes()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self {
            seed: hash.finalize().into(),
            block: [0; 32],
            used: 32,
            count: 0,
        }
    }

    /// From 0 to `below` - 1.
    fn next(&mut self, below: u32) -> u32 {
        if self.used + 4 > self.block.len() {
            let hash = Sha256::new()
                .chain_update(self.seed)
                .chain_update(self.count.to_le_bytes());
            self.block = hash.finalize().into();
            self.count += 1;
            self.used = 0;
        }
        let bytes = &self.block[self.used..self.used + 4];
        self.used += 4;
        let number = bytes
            .iter()
            .fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
        // The bias is below one in a hundred million.
        number % below.max(1)
    }

    /// A character of the same class.
    fn like(&mut self, c: char) -> char {
        let from = |base: u8, n: u32| char::from(base + u8::try_from(n).unwrap_or_default());
        match c {
            '0'..='9' => from(b'0', self.next(10)),
            'a'..='z' => from(b'a', self.next(26)),
            'A'..='Z' => from(b'A', self.next(26)),
            c if c.is_alphanumeric() => from(b'a', self.next(26)),
            c => c,
        }
    }

    fn all_like(&mut self, text: &str) -> String {
        text.chars().map(|c| self.like(c)).collect()
    }
}

fn surrogate(original: &str, kind: Option<Sensitive>, random: &mut Stream) -> String {
    match kind {
        Some(Sensitive::Email) => match original.rsplit_once('.') {
            // The top level stays: what it is said to be.
            Some((rest, top)) => format!("{}.{top}", random.all_like(rest)),
            None => random.all_like(original),
        },
        Some(Sensitive::Card) => card(original, random),
        Some(Sensitive::Iban) => iban(original, random),
        Some(Sensitive::Ip) => ip(original, random),
        Some(Sensitive::Phone) => {
            // What tells a country's prefix from a trunk's stays, and the digit behind it.
            let first = original.find(|c: char| matches!(c, '1'..='9'));
            let kept = first.map_or(0, |first| first + 1);
            let (head, tail) = original.split_at(kept);
            format!("{head}{}", random.all_like(tail))
        }
        Some(Sensitive::Secret) => secret(original, random),
        None => random.all_like(original),
    }
}

/// The first digit stays, which is the network's; the last one makes it pass.
fn card(original: &str, random: &mut Stream) -> String {
    let (head, tail) = original.split_at(1);
    let mut said = format!("{head}{}", random.all_like(tail));
    said.pop();
    let check = (0..10).find(|check| luhn(&format!("{said}{check}")) == 0);
    format!("{said}{}", check.unwrap_or_default())
}

/// The country stays; the two digits behind it make it pass.
fn iban(original: &str, random: &mut Stream) -> String {
    let (country, tail) = (&original[..2], &original[4..]);
    let tail = random.all_like(tail);
    let check = 98 - mod_97(&format!("{country}00{tail}"));
    format!("{country}{check:02}{tail}")
}

fn ip(original: &str, random: &mut Stream) -> String {
    if original.contains('.') {
        let octet = |octet: &str| match octet.len() {
            1 => random.next(10),
            2 => 10 + random.next(90),
            _ => 100 + random.next(156),
        };
        let octets: Vec<String> = original
            .split('.')
            .map(octet)
            .map(|n| n.to_string())
            .collect();
        return octets.join(".");
    }
    let hex = |c: char| match c.to_digit(16) {
        Some(_) => char::from_digit(random.next(16), 16).unwrap_or(c),
        None => c,
    };
    original.chars().map(hex).collect()
}

/// What tells the issuer stays.
fn secret(original: &str, random: &mut Stream) -> String {
    if original.starts_with("-----BEGIN") {
        let mut lines = original
            .split('\n')
            .map(|line| match line.starts_with("-----") {
                true => line.to_owned(),
                false => random.all_like(line),
            });
        let first = lines.next().unwrap_or_default();
        return lines.fold(first, |text, line| text + "\n" + &line);
    }
    let long = [
        "github_pat_",
        "sk-svcacct-",
        "sk-proj-",
        "sk-ant-",
        "sk_live_",
        "sk_test_",
        "rk_live_",
        "rk_test_",
        "glpat-",
        "sk-or-",
        "pypi-",
        "ya29.",
        "npm_",
    ];
    let prefix = long
        .iter()
        .find(|prefix| original.starts_with(**prefix))
        .map_or(4, |p| p.len());
    let (head, tail) = original.split_at(prefix.min(original.len()));
    format!("{head}{}", random.all_like(tail))
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
