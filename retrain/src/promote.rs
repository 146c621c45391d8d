//! What a verdict does: promote by itself where the policy says so, give a share of the traffic where that has to settle it, reject what is
//! worse, and else leave the candidate to a person.

use retune_task::{Promote, RetrainPolicy};

use crate::Error;
use crate::report::Report;
use crate::server::Server;
use crate::verdict::Verdict;

/// Carries a verdict out on the running server. True if the candidate is the champion now; else the sentence says why not.
pub(crate) async fn carry_out(
    server: &Server,
    policy: &RetrainPolicy,
    report: &Report,
    candidate: &str,
) -> Result<Result<(), String>, Error> {
    let reason = format!("{}: {}", report.verdict, report.reasons.join("; "));
    let canary = policy.canary;
    let percent = canary.share * 100.0;
    match (report.verdict, policy.promote) {
        (Verdict::Promote, Promote::Auto) if !canary.always => {
            let baseline = &report.baseline;
            Ok(refused(server.promote(candidate, baseline, &reason).await)?.map_err(|message| {
                format!("`{candidate}` was compared with `{baseline}`, which is the champion no longer: {message}")
            }))
        }
        (Verdict::Promote | Verdict::Canary, Promote::Auto) => {
            let baseline = &report.baseline;
            let given = server
                .canary(candidate, canary.share, baseline, &reason)
                .await;
            Ok(Err(match refused(given)? {
                Ok(()) => format!(
                    "`{candidate}` answers {percent} % of the users as the canary, until they tell whether it is worse"
                ),
                Err(message) => format!("`{candidate}` stays a candidate: {message}"),
            }))
        }
        (Verdict::Promote, Promote::Approve) => Ok(Err(format!(
            "`{candidate}` waits for a person to say yes (promote = \"approve\")"
        ))),
        (Verdict::Canary, Promote::Approve) => Ok(Err(format!(
            "`{candidate}` waits for a person to give it a share of the traffic (`retune adapter canary {candidate} --share {}`)",
            canary.share
        ))),
        (Verdict::Wait, _) => Ok(Err(format!("`{candidate}` stays a candidate"))),
        (Verdict::Reject, _) => {
            server.reject(candidate, &reason).await?;
            Ok(Err(format!("`{candidate}` is rejected")))
        }
    }
}

/// The server's words where it did not allow a move; other errors stay errors.
fn refused(moved: Result<(), Error>) -> Result<Result<(), String>, Error> {
    match moved {
        Ok(()) => Ok(Ok(())),
        Err(Error::Refused {
            status: 409,
            message,
            ..
        }) => Ok(Err(message)),
        Err(error) => Err(error),
    }
}
