//! How a plan's parts are written in a file of kept histories, where that is not how they are made.

/// Return codes as the numbers that they are.
pub(super) mod numbers {
    use ha_token::Rv;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::plan) fn serialize<S: Serializer>(answers: &[Rv], to: S) -> Result<S::Ok, S::Error> {
        answers.iter().map(|rv| rv.0).collect::<Vec<_>>().serialize(to)
    }

    pub(in crate::plan) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<Rv>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().map(Rv).collect())
    }
}

/// Functions by the standard's names.
pub(super) mod functions {
    use ha_token::Function;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in crate::plan) fn serialize<S: Serializer>(
        functions: &[Function],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        functions.iter().map(|f| f.name()).collect::<Vec<_>>().serialize(to)
    }

    pub(in crate::plan) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<Function>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        let function = |name: &String| Function::ALL.iter().copied().find(|f| f.name() == name);
        names
            .iter()
            .map(|n| function(n).ok_or_else(|| D::Error::custom(format!("no function {n}"))))
            .collect()
    }
}
