//! What a verdict does: promote by itself where the policy says so, reject what is worse, and else leave the candidate to a person.

use retune_task::Promote;

use crate::Error;
use crate::server::Server;
use crate::verdict::Verdict;

/// Carries a verdict out on the running server. True if the candidate is the champion now; else the sentence says why not.
pub(crate) async fn carry_out(
    server: &Server,
    verdict: Verdict,
    policy: Promote,
    candidate: &str,
    baseline: &str,
) -> Result<Result<(), String>, Error> {
    match (verdict, policy) {
        (Verdict::Promote, Promote::Auto) => match server.promote(candidate, baseline).await {
            Ok(()) => Ok(Ok(())),
            Err(Error::Refused {
                status: 409,
                message,
                ..
            }) => Ok(Err(format!(
                "`{candidate}` was compared with `{baseline}`, which is the champion no longer: {message}"
            ))),
            Err(error) => Err(error),
        },
        (Verdict::Promote, Promote::Approve) => Ok(Err(format!(
            "`{candidate}` waits for a person to say yes (promote = \"approve\")"
        ))),
        (Verdict::Canary | Verdict::Wait, _) => Ok(Err(format!("`{candidate}` stays a candidate"))),
        (Verdict::Reject, _) => {
            server.reject(candidate).await?;
            Ok(Err(format!("`{candidate}` is rejected")))
        }
    }
}
