//! Which device computes, and why another one does not.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use realign_cpu::Cpu;
use realign_cuda::{Found, find};
use realign_model::ComputeDevice;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device that answers, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

/// What [`DeviceChoice`] is read from, for messages.
pub const ALLOWED: &str = "auto, cpu, or cuda:N such as cuda:0";

impl FromStr for DeviceChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|n| n.chars().all(|c| c.is_ascii_digit()))
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or(ALLOWED),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Why the device that was asked for does not compute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The binary has no CUDA.
    #[error(
        "device {0} was asked for, but this program was built without CUDA: build it with \
         `make cuda`, or choose device auto or cpu"
    )]
    NotCompiled(DeviceChoice),
    /// The driver or the devices do not answer.
    #[error(
        "device {choice} does not answer ({reason}): see whether `nvidia-smi` lists it, or choose \
         device auto or cpu"
    )]
    NoAnswer {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the driver said.
        reason: String,
    },
    /// There are devices, but not this one.
    #[error(
        "there is no device {choice}: this machine has {count}, numbered from cuda:0 to cuda:{}",
        .count - 1
    )]
    NoSuchDevice {
        /// What was asked for.
        choice: DeviceChoice,
        /// CUDA devices of the machine, at least one.
        count: usize,
    },
}

/// A decision: `Some` CUDA device, or the CPU and why under `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chosen {
    /// The CUDA device of this number.
    Cuda(usize),
    /// The CPU; why no other, where none was ruled out by the choice itself.
    Cpu(Option<String>),
}

/// Decides, given what the machine has. Pure.
///
/// # Errors
/// [`DeviceError`], never for `auto` and `cpu`.
fn decide(choice: DeviceChoice, found: &Found) -> Result<Chosen, DeviceError> {
    match (choice, found) {
        (DeviceChoice::Cpu, _) => Ok(Chosen::Cpu(None)),
        (DeviceChoice::Auto, Found::Devices(_)) => Ok(Chosen::Cuda(0)),
        (DeviceChoice::Auto, Found::NotCompiled) => Ok(Chosen::Cpu(Some(
            "this program was built without CUDA".into(),
        ))),
        (DeviceChoice::Auto, Found::Nothing(reason)) => Ok(Chosen::Cpu(Some(format!(
            "no CUDA device answers: {reason}"
        )))),
        (DeviceChoice::Cuda(_), Found::NotCompiled) => Err(DeviceError::NotCompiled(choice)),
        (DeviceChoice::Cuda(_), Found::Nothing(reason)) => Err(DeviceError::NoAnswer {
            choice,
            reason: reason.clone(),
        }),
        (DeviceChoice::Cuda(n), Found::Devices(count)) if n < *count => Ok(Chosen::Cuda(n)),
        (DeviceChoice::Cuda(_), Found::Devices(count)) => Err(DeviceError::NoSuchDevice {
            choice,
            count: *count,
        }),
    }
}

/// Whether the device that was asked for can be opened, as far as that is known without doing so.
///
/// # Errors
/// [`DeviceError`], never for `auto` and `cpu`.
pub fn check(choice: DeviceChoice) -> Result<(), DeviceError> {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        DeviceChoice::Cuda(_) => decide(choice, &find()).map(drop),
    }
}

/// Opens the device that was asked for; says in the log which it is, and under `auto` why it is not
/// a better one.
///
/// # Errors
/// [`DeviceError`].
pub fn open(choice: DeviceChoice) -> Result<Arc<dyn ComputeDevice>, DeviceError> {
    let found = if choice == DeviceChoice::Cpu {
        Found::NotCompiled
    } else {
        find()
    };
    match decide(choice, &found)? {
        Chosen::Cpu(None) => Ok(Arc::new(Cpu)),
        Chosen::Cpu(Some(reason)) => {
            tracing::info!(device = "cpu", reason, "computing on the CPU");
            Ok(Arc::new(Cpu))
        }
        Chosen::Cuda(number) => match realign_cuda::open(number) {
            Ok(device) => {
                tracing::info!(device = %DeviceChoice::Cuda(number), "computing on a CUDA device");
                Ok(device)
            }
            // It is counted, but cannot be used: another process may own it.
            Err(error) if choice == DeviceChoice::Auto => {
                tracing::warn!(device = "cpu", %error, "no CUDA device can be used: computing on the CPU");
                Ok(Arc::new(Cpu))
            }
            Err(error) => Err(DeviceError::NoAnswer {
                choice,
                reason: error.to_string(),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:11"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "CPU",
            "cuda:99999999999999999999",
        ] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(ALLOWED), "{text}");
        }
    }

    #[test]
    fn every_refusal_says_why_and_what_else_there_is() {
        let nothing = Found::Nothing("no driver".into());
        let refused = |n, found: &Found| {
            decide(DeviceChoice::Cuda(n), found)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(0, &Found::NotCompiled).contains("make cuda"));
        assert!(refused(0, &nothing).contains("(no driver)"));
        let beyond = refused(7, &Found::Devices(2));
        assert!(
            beyond.contains("no device cuda:7") && beyond.contains("cuda:0 to cuda:1"),
            "{beyond}"
        );
        assert_eq!(
            decide(DeviceChoice::Cuda(1), &Found::Devices(2)),
            Ok(Chosen::Cuda(1))
        );
    }

    #[test]
    fn auto_never_fails() {
        let auto = |found: Found| decide(DeviceChoice::Auto, &found).unwrap();
        assert_eq!(auto(Found::Devices(3)), Chosen::Cuda(0));
        assert!(matches!(auto(Found::NotCompiled), Chosen::Cpu(Some(_))));
        assert!(
            matches!(auto(Found::Nothing("x".into())), Chosen::Cpu(Some(why)) if why.contains('x'))
        );
        assert_eq!(
            decide(DeviceChoice::Cpu, &Found::Devices(1)),
            Ok(Chosen::Cpu(None))
        );
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_the_feature_a_cuda_device_is_refused_and_auto_is_the_cpu() {
        assert!(matches!(
            open(DeviceChoice::Cuda(0)),
            Err(DeviceError::NotCompiled(_))
        ));
        assert!(open(DeviceChoice::Auto).unwrap().free_bytes().is_none());
    }
}
