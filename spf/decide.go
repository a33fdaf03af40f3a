package spf

import "postern/policy"

// identity is one of the two that SPF asks about.
type identity uint8

const (
	identityMailFrom identity = iota
	identityHelo
	identities
)

// String returns the name of the SMTP command.
func (id identity) String() string { return [...]string{"MAIL FROM", "HELO"}[id] }

// fact returns the name that RFC 7208 section 9.1 gives it.
func (id identity) fact() string { return [...]string{"mailfrom", "helo"}[id] }

// kind is a result as the configuration tells them apart.
type kind uint8

const (
	kindPass kind = iota
	kindFail
	kindSoftFail
	kindNeutral
	kindNone
	kindTempError
	kindPermError
	kindTooWide // a pass that does not count
	kinds
)

var kindNames = [kinds]string{pass, fail, softfail, neutral, none, temperror, permerror, "too-wide"}

func kindOf(o *Outcome) kind {
	if o.Result == pass && o.TooWide {
		return kindTooWide
	}
	for k, name := range kindNames {
		if name == o.Result {
			return kind(k)
		}
	}
	return kindPermError // the library has no other
}

// reasons are the slugs of results, for verdicts and marks.
var reasons = [identities][kinds]string{
	identityMailFrom: {
		"spf-pass", "spf-fail", "spf-softfail", "spf-neutral", "spf-none", "spf-temperror", "spf-permerror", "spf-too-wide",
	},
	identityHelo: {
		"spf-helo-pass", "spf-helo-fail", "spf-helo-softfail", "spf-helo-neutral", "spf-helo-none", "spf-helo-temperror",
		"spf-helo-permerror", "spf-helo-too-wide",
	},
}

// Reasons of rulings that do not come from a result alone.
const (
	reasonMustPass     = "spf-must-pass"
	reasonAllowMissing = "spf-allow-missing"
)

// action returns what a result does.
func (c *Config) action(id identity, k kind) Action {
	a := &c.MailFrom
	if id == identityHelo {
		a = &c.Helo
	}
	return [kinds]Action{
		kindPass: Off, kindFail: a.Fail, kindSoftFail: a.SoftFail, kindNeutral: a.Neutral, kindNone: a.None,
		kindTempError: a.TempError, kindPermError: a.PermError, kindTooWide: a.TooWide,
	}[k]
}

// findings are what was learned about a message.
type findings struct {
	mail *Outcome // nil for the null sender
	helo *Outcome
	must bool // the sender's domain is in must_pass
	// allowedBy is the domain of allow_domains that lets the client pass.
	allowedBy    string
	allowMissing bool // one of them could not be asked
}

// main returns the outcome for what the message is from.
func (f *findings) main() (*Outcome, identity) {
	if f.mail != nil {
		return f.mail, identityMailFrom
	}
	return f.helo, identityHelo
}

// ruling is what findings lead to.
type ruling struct {
	action   Action
	reason   string
	identity identity
	outcome  *Outcome
}

// decide is the whole rule. The stronger action of the two identities counts,
// of equal ones that of the sender. An allow list that could not be asked
// makes a rejection wait.
func decide(cfg *Config, f *findings) ruling {
	o, id := f.main()
	k := kindOf(o)
	r := ruling{cfg.action(id, k), reasons[id][k], id, o}
	if f.must && k != kindPass {
		r.action, r.reason = Reject, reasonMustPass
		if k == kindTempError {
			r.action = Defer
		}
	}
	if f.mail != nil {
		k := kindOf(f.helo)
		if a := cfg.action(identityHelo, k); a > r.action {
			r = ruling{a, reasons[identityHelo][k], identityHelo, f.helo}
		}
	}
	if r.action == Reject && f.allowMissing {
		r.action, r.reason = Defer, reasonAllowMissing
	}
	return r
}

// temporary reports whether it is for want of an answer from the DNS.
func (r *ruling) temporary() bool {
	return r.outcome.Result == temperror || r.reason == reasonAllowMissing
}

// word returns the result in a word.
func (r *ruling) word() string { return kindNames[kindOf(r.outcome)] }

// detail is for our own log.
func (r *ruling) detail() string {
	return r.identity.String() + " " + r.outcome.Domain + ": " + r.outcome.words()
}

// words returns the outcome as people read it.
func (o *Outcome) words() string {
	s := kindNames[kindOf(o)]
	if o.Mechanism != "" {
		s += " by " + o.Mechanism
	}
	if o.Problem != "" {
		s += ": " + policy.Printable(o.Problem)
	}
	return s
}
