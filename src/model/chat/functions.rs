//! What Hugging Face's renderer offers to templates beyond Jinja itself.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind, Value};
use realign_core::clock;

/// Registers `raise_exception` and `strftime_now`.
pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: &str| {
        strftime(format, UNIX_EPOCH + clock::since_1970())
    });
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// The directives that chat templates use, in UTC; others stay as they are written.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", time / 3600)),
            Some('M') => out.push_str(&format!("{:02}", time / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", time % 60)),
            Some('I') => out.push_str(&format!("{:02}", (time / 3600 + 11) % 12 + 1)),
            Some('p') => out.push_str(if time < 43_200 { "AM" } else { "PM" }),
            Some('j') => out.push_str(&format!("{:03}", day_of_year(year, month, day))),
            Some('e') => out.push_str(&format!("{day:2}")),
            // Without zeros before the number.
            Some('-') => match chars.next() {
                Some('d') => out.push_str(&day.to_string()),
                Some('m') => out.push_str(&month.to_string()),
                Some('H') => out.push_str(&(time / 3600).to_string()),
                Some('I') => out.push_str(&((time / 3600 + 11) % 12 + 1).to_string()),
                Some('M') => out.push_str(&(time / 60 % 60).to_string()),
                other => out.extend(['%', '-'].into_iter().chain(other)),
            },
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn day_of_year(year: u64, month: usize, day: u64) -> u64 {
    month_lengths(year)[..month - 1].iter().sum::<u64>() + day
}

fn is_leap(y: u64) -> bool {
    y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400))
}

fn month_lengths(year: u64) -> [u64; 12] {
    let february = 28 + u64::from(is_leap(year));
    [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// Year, month (1 to 12) and day of the month of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, usize, u64) {
    // 400 years have 146,097 days; what is left takes at most 400 steps.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in month_lengths(year) {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, "Thursday 01 January 1970 00:00:00"),
            (951_782_400, "Tuesday 29 February 2000 00:00:00"),
            (1_735_689_599, "Tuesday 31 December 2024 23:59:59"),
            (1_795_433_535, "Monday 23 November 2026 11:32:15"),
        ];
        for (seconds, expect) in cases {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime("%A %d %B %Y %H:%M:%S", time), expect);
        }
        assert_eq!(strftime("%b %y %% %q %", UNIX_EPOCH), "Jan 70 % %q %");
        let noon = UNIX_EPOCH + Duration::from_secs(12 * 3600);
        assert_eq!(
            strftime("%I %p %e %-d.%-m. %-H %j", noon),
            "12 PM  1 1.1. 12 001"
        );
    }
}
