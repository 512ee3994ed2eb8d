//! What a pipeline is chosen by, where the user names none.

/// What `RKNPU_MODE` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Goal {
    /// The cheapest pipeline whose error stays at the level of the CPU's own product of the weight's type.
    #[default]
    Accurate,
    /// As few bytes as the weight's type has digits for.
    Lean,
    /// The fastest pipeline that keeps a stated bound.
    Fast,
}

impl Goal {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::Accurate, Self::Lean, Self::Fast];
    /// What may be said, for error messages.
    pub const ALLOWED: &'static str = "accurate, lean or fast";

    /// The goal of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|goal| goal.name().eq_ignore_ascii_case(name))
    }

    /// The name that users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accurate => "accurate",
            Self::Lean => "lean",
            Self::Fast => "fast",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_all_are_said() {
        for goal in Goal::ALL {
            assert_eq!(Goal::by_name(&goal.name().to_uppercase()), Some(goal));
            assert!(Goal::ALLOWED.contains(goal.name()));
        }
        assert_eq!(Goal::default(), Goal::ALL[0]);
        assert_eq!(Goal::by_name("quick"), None);
        assert_eq!(Goal::by_name(""), None);
    }
}
