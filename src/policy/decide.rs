//! Everything that the user said about pipelines, put together.

use super::goal::Goal;
use super::hybrid::Hybrid;
use super::rules::Rules;
use super::scheme::{Placement, Scheme};

/// What was said, each by a variable of its own.
#[derive(Debug, Default, PartialEq)]
pub struct Wishes {
    /// `RKNPU_MODE`.
    pub mode: Option<Goal>,
    /// `RKNPU_PIPELINE`.
    pub pipeline: Option<Placement>,
    /// `RKNPU_POLICY`.
    pub policy: Option<Rules>,
    /// `RKNPU_HYBRID`.
    pub hybrid: Option<Hybrid>,
}

/// What is asked for each weight.
#[derive(Debug, Default, PartialEq)]
pub struct Policy {
    /// What to choose by, where nothing else says what to take.
    pub goal: Goal,
    /// What all weights take.
    pub forced: Option<Placement>,
    /// What weights of certain names take.
    pub rules: Rules,
    /// What weights take in turn.
    pub hybrid: Option<Hybrid>,
}

/// What is asked for one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The user named it: this and nothing else.
    Fixed(Placement),
    /// Whatever is best by this goal.
    Choose(Goal),
}

impl Policy {
    /// The policy that follows from what was said.
    ///
    /// # Errors
    /// Two things were said of which only one can hold; the sentence names the variables.
    pub fn new(wishes: Wishes) -> Result<Self, String> {
        let Wishes { mode, pipeline, policy, hybrid } = wishes;
        // The first two each settle every weight, so that nothing is left for another to say.
        let said = [
            ("RKNPU_PIPELINE", pipeline.is_some()),
            ("RKNPU_HYBRID", hybrid.is_some()),
            ("RKNPU_POLICY", policy.is_some()),
            ("RKNPU_MODE", mode.is_some()),
        ];
        let mut said = said.into_iter().filter_map(|(name, set)| set.then_some(name));
        if let (Some(first @ ("RKNPU_PIPELINE" | "RKNPU_HYBRID")), Some(second)) = (said.next(), said.next())
        {
            return Err(format!(
                "{first} and {second} are both set, and {first} alone says what every weight takes: \
                 name only one of them"
            ));
        }
        let rules = policy.unwrap_or_default();
        let goal = match (mode, rules.mode) {
            (Some(outside), Some(inside)) if outside != inside => {
                return Err(format!(
                    "RKNPU_MODE is \"{}\", the file that RKNPU_POLICY names says mode = \"{}\": \
                     name only one of them",
                    outside.name(),
                    inside.name()
                ));
            }
            (outside, inside) => outside.or(inside).unwrap_or_default(),
        };
        Ok(Self { goal, forced: pipeline, rules, hybrid })
    }

    /// Every scheme that the user named, with the variable that names it.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Scheme)> + '_ {
        let forced = self.forced.iter().map(|placement| ("RKNPU_PIPELINE", *placement));
        let rules = self.rules.placements().map(|placement| ("RKNPU_POLICY", placement));
        let hybrid = self.hybrid.iter().flat_map(Hybrid::placements);
        let all = forced.chain(rules).chain(hybrid.map(|placement| ("RKNPU_HYBRID", placement)));
        all.filter_map(|(variable, placement)| match placement {
            Placement::Npu(scheme) => Some((variable, scheme)),
            Placement::Cpu => None,
        })
    }

    /// What is asked for the weight called `tensor`: `RKNPU_PIPELINE` before `RKNPU_POLICY`, before
    /// `RKNPU_HYBRID`, before `RKNPU_MODE`.
    pub fn of(&self, tensor: &str) -> Decision {
        self.forced
            .or_else(|| self.rules.of(tensor))
            .or_else(|| self.hybrid.as_ref().map(|hybrid| hybrid.of(tensor)))
            .map_or(Decision::Choose(self.goal), Decision::Fixed)
    }
}

impl Policy {
    /// Whether the weight called `tensor` is left to the CPU by name, which is known before any weight is multiplied by.
    pub fn is_for_cpu(&self, tensor: &str) -> bool {
        self.forced.or_else(|| self.rules.of(tensor)) == Some(Placement::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "mode = 'fast'\n[[weights]]\nname = 'a*'\npipeline = 'CPU'";

    fn placement(name: &str) -> Placement {
        Placement::by_name(name).unwrap()
    }

    fn rules() -> Option<Rules> {
        Some(Rules::parse(RULES.as_bytes()).unwrap())
    }

    fn hybrid() -> Option<Hybrid> {
        Some(Hybrid::new("W8A8,CPU").unwrap())
    }

    #[test]
    fn each_source_decides_what_is_its_own() {
        let policy = Policy::new(Wishes::default()).unwrap();
        assert_eq!((policy.of("a"), &policy), (Decision::Choose(Goal::Accurate), &Policy::default()));
        let policy = Policy::new(Wishes { mode: Some(Goal::Lean), ..Wishes::default() }).unwrap();
        assert_eq!(policy.of("a"), Decision::Choose(Goal::Lean));
        let forced = Some(placement("W8A8_PADDED"));
        let policy = Policy::new(Wishes { pipeline: forced, ..Wishes::default() }).unwrap();
        assert_eq!(policy.of("a"), Decision::Fixed(placement("W8A8_PADDED")));
        let policy = Policy::new(Wishes { policy: rules(), ..Wishes::default() }).unwrap();
        assert_eq!(policy.of("ab"), Decision::Fixed(Placement::Cpu));
        assert_eq!(policy.of("b"), Decision::Choose(Goal::Fast));
        let policy = Policy::new(Wishes { hybrid: hybrid(), ..Wishes::default() }).unwrap();
        assert_eq!(policy.of("b"), Decision::Fixed(placement("W8A8")));
        assert_eq!(policy.of("a"), Decision::Fixed(Placement::Cpu));
    }

    #[test]
    fn the_more_particular_comes_first() {
        let all = Policy {
            goal: Goal::Fast,
            forced: Some(placement("W16A16")),
            rules: rules().unwrap(),
            hybrid: hybrid(),
        };
        assert_eq!(all.of("a"), Decision::Fixed(placement("W16A16")));
        let all = Policy { forced: None, ..all };
        assert_eq!(all.of("a"), Decision::Fixed(Placement::Cpu));
        assert_eq!(all.of("b"), Decision::Fixed(placement("W8A8")));
        assert_eq!(Policy { hybrid: None, ..all }.of("b"), Decision::Choose(Goal::Fast));
    }

    #[test]
    fn what_cannot_both_hold_is_refused() {
        let pipeline = || Some(placement("W8A8"));
        let mode = Some(Goal::Fast);
        for (names, wishes) in [
            (
                ["RKNPU_PIPELINE", "RKNPU_HYBRID"],
                Wishes { pipeline: pipeline(), hybrid: hybrid(), ..Wishes::default() },
            ),
            (
                ["RKNPU_PIPELINE", "RKNPU_POLICY"],
                Wishes { pipeline: pipeline(), policy: rules(), ..Wishes::default() },
            ),
            (["RKNPU_PIPELINE", "RKNPU_MODE"], Wishes { pipeline: pipeline(), mode, ..Wishes::default() }),
            (
                ["RKNPU_HYBRID", "RKNPU_POLICY"],
                Wishes { hybrid: hybrid(), policy: rules(), ..Wishes::default() },
            ),
            (["RKNPU_HYBRID", "RKNPU_MODE"], Wishes { hybrid: hybrid(), mode, ..Wishes::default() }),
        ] {
            let error = Policy::new(wishes).unwrap_err();
            assert!(
                names.iter().all(|name| error.contains(name)) && error.contains("only one of them"),
                "{error}"
            );
        }
    }

    #[test]
    fn two_modes_must_be_one() {
        let with = |mode| Policy::new(Wishes { mode: Some(mode), policy: rules(), ..Wishes::default() });
        assert_eq!(with(Goal::Fast).unwrap().of("b"), Decision::Choose(Goal::Fast));
        let error = with(Goal::Lean).unwrap_err();
        assert!(error.contains("RKNPU_MODE is \"lean\"") && error.contains("mode = \"fast\""), "{error}");
    }
}
