// Package milter is the milter door: the server side of the protocol that
// Postfix's smtpd_milters and non_smtpd_milters speak (MILTER_README), on the
// library github.com/d--j/go-milter. It turns events into a [policy.Request],
// has the content looked at, and turns what comes of it into replies and
// edits. It knows nothing of checks.
//
// Postfix opens one connection for each SMTP session and ends it with the
// session. A connection that the milter closes before is a failure of the
// milter for the rest of that session (milter_default_action), so a fault of
// ours is answered with a temporary failure of the one message instead.
package milter
