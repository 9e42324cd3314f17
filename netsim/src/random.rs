//! Chance that replays: every draw is a function of the seed, the link, the packet's place on it and what is drawn, so a
//! change on one link, or one more draw for a packet, disturbs no other.

/// What a draw decides.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Loss,
    Burst,
    BurstLoss,
    Duplicate,
    Jitter,
    JitterAngle,
    CopyJitter,
    CopyJitterAngle,
    Port,
}

/// The draws of one link.
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64, name: &[u8]) -> Self {
        // FNV-1a: the standard library's hasher promises nothing over releases.
        let hash = name
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        Self(mix(seed) ^ hash)
    }

    pub(crate) fn bits(&self, index: u64, purpose: Purpose) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_mul(16).wrapping_add(purpose as u64).wrapping_mul(GOLDEN)))
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&self, index: u64, purpose: Purpose) -> f64 {
        (self.bits(index, purpose) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958). `libm` and not the system's functions, which differ in the last bit.
    pub(crate) fn normal(&self, index: u64, purpose: Purpose, angle: Purpose) -> f64 {
        let radius = (-2.0 * libm::log(1.0 - self.unit(index, purpose))).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.unit(index, angle))
    }
}

/// The share of a standard normal distribution below `x`.
pub(crate) fn normal_share(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// splitmix64's output function (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
