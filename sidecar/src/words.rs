//! Words for metrics, each said once: an enum beside which no list of its variants has to be kept.

/// Makes an enum each of whose variants has a word: `ALL` has them in their order, and a method gives the word.
macro_rules! words {
    (
        $(#[$attribute:meta])*
        $vis:vis enum $name:ident, $word:ident {
            $($(#[$doc:meta])* $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$attribute])*
        $vis enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every one there is, in the order of their numbers.
            $vis const ALL: [$name; [$($text),+].len()] = [$($name::$variant),+];

            /// One word, for metrics.
            $vis const fn $word(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                }
            }
        }
    };
}

/// Gives each variant of an enum a reason, and lists all of them as `REASONS`. One variant may hold an enum that has reasons of
/// its own.
macro_rules! reasons {
    (
        $name:ident {
            $($pattern:pat => $text:literal,)+
        }
        $($inner:ident: $of:ty,)?
    ) => {
        impl $name {
            /// One word, for metrics and `portunus-error`; one of `REASONS`.
            pub fn reason(&self) -> &'static str {
                match self {
                    $($pattern => $text,)+
                    $($name::$inner(inner) => inner.reason(),)?
                }
            }

            /// Every reason there is.
            pub const REASONS: [&'static str; [$($text),+].len() $(+ <$of>::REASONS.len())?] =
                $crate::words::joined(&[$($text),+], &[$(&<$of>::REASONS)?]);
        }
    };
}

pub(crate) use {reasons, words};

/// The first list, and the others behind it.
pub(crate) const fn joined<const N: usize>(first: &[&'static str], others: &[&[&'static str]]) -> [&'static str; N] {
    let mut all = [""; N];
    let (mut at, mut of) = (0, 0);
    while at < first.len() {
        all[at] = first[at];
        at += 1;
    }
    while of < others.len() {
        let mut from = 0;
        while from < others[of].len() {
            all[at] = others[of][from];
            at += 1;
            from += 1;
        }
        of += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    words! {
        /// Two.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Two, word {
            One = "one",
            Other = "other",
        }
    }

    enum Inner {
        Deep,
    }

    reasons! {
        Inner {
            Inner::Deep => "deep",
        }
    }

    enum Outer {
        Flat {},
        Within(Inner),
    }

    reasons! {
        Outer {
            Outer::Flat {} => "flat",
        }
        Within: Inner,
    }

    #[test]
    fn all_are_listed_in_their_order_under_their_words() {
        assert_eq!(
            Two::ALL.map(|one| (one as usize, one.word())),
            [(0, "one"), (1, "other")]
        );
        assert_eq!(Outer::REASONS, ["flat", "deep"]);
        let reasons = [Outer::Flat {}, Outer::Within(Inner::Deep)].map(|outer| outer.reason());
        assert_eq!(reasons, Outer::REASONS);
    }
}
