package callout

import "strings"

// Class is what a probe says about an address.
type Class uint8

// The classes. Only Unknown is a statement that the mailbox does not exist.
const (
	Undecided Class = iota // the answer says nothing about the mailbox
	Known                  // the next hop takes mail for it
	Unknown                // there is no such mailbox
	Full                   // it exists and is over its quota or the like
	Temporary              // the next hop cannot tell now
	Down                   // the next hop cannot be asked
	Refused                // the next hop refuses the probe, not the address
	AcceptAll              // the next hop takes every address: its answer says nothing
	classCount
)

var classNames = [classCount]string{
	"undecided", "known", "unknown", "full", "temporary", "down", "refused", "accept-all",
}

// String returns the slug used in logs, metrics and commands.
func (c Class) String() string {
	if c < classCount {
		return classNames[c]
	}
	return classNames[Undecided]
}

// Classes are the names of all classes, for metrics.
func Classes() []string { return classNames[:] }

// Stage is the step of the dialogue that ended a probe.
type Stage uint8

// The stages, in their order.
const (
	StageRoute Stage = iota // finding the host
	StageConnect
	StageGreeting
	StageHello // EHLO, HELO, LHLO
	StageTLS   // STARTTLS and the handshake
	StageMail
	StageRcpt
	stageCount
)

var stageNames = [stageCount]string{"route", "connect", "greeting", "hello", "starttls", "mail", "rcpt"}

// String returns the name used in logs and commands.
func (s Stage) String() string {
	if s < stageCount {
		return stageNames[s]
	}
	return "unknown"
}

// Classify says what a reply at a stage means (RFC 5321, RFC 3463, RFC 5248;
// docs/checks/verify.md has it as a table). Only a permanent reply to RCPT
// that speaks of the mailbox makes an address unknown: a wrong "unknown" loses
// mail, a wrong "known" costs one bounce.
func Classify(stage Stage, r Reply) Class {
	if r.Code == 421 {
		return Down
	}
	switch stage {
	case StageRcpt:
		return classifyRcpt(r)
	case StageMail:
		switch {
		case r.positive():
			return Undecided // the answer to RCPT counts
		case r.Code/100 == 4:
			return Down
		case r.Enhanced == "5.6.7" || r.Code == 553 && r.Enhanced == "":
			return Undecided // the sender's form, or SMTPUTF8
		}
		return Refused
	case StageRoute, StageConnect, StageGreeting, StageHello, StageTLS, stageCount:
	}
	return Down
}

// Alarm reports whether an answer is a matter for the operator: the next hop
// does not refuse an address but us, so that mail would not get there either,
// or no probe ever will.
func Alarm(stage Stage, r Reply) bool {
	return r.Code/100 == 5 && (stage == StageGreeting || stage == StageHello || Classify(stage, r) == Refused)
}

func classifyRcpt(r Reply) Class {
	detail := ""
	if len(r.Enhanced) > 2 {
		detail = r.Enhanced[2:]
	}
	switch {
	case r.Code == 252:
		return Undecided
	case r.positive():
		return Known
	case detail == "2.2":
		return Full
	case r.Code/100 == 4:
		return Temporary
	case r.Code/100 != 5:
		return Undecided
	}
	switch detail {
	case "":
		return bare(r)
	case "1.0", "2.0":
		// They leave open what is wrong. Postfix says 5.1.0 of a sender that it
		// refuses, at RCPT (smtpd_dsn_fix.c).
		if blamesUs(words(r)) {
			return Refused
		}
		return Unknown
	case "1.1", "1.2", "1.3", "1.6", "1.10", "2.1", "7.13", "7.17":
		if strings.Contains(words(r), "sender address rejected") {
			return Refused
		}
		return Unknown
	case "2.3", "3.4", "7.2":
		return Known // refused for its size, or a list that takes mail from members
	case "4.1":
		// A large hosting service says it of unknown users.
		if strings.Contains(words(r), "recipient address rejected: access denied") {
			return Unknown
		}
		return Temporary
	case "1.7", "1.8":
		return Refused // it speaks of our sender
	}
	switch {
	case strings.HasPrefix(detail, "7."):
		return Refused
	case strings.HasPrefix(detail, "4."):
		return Temporary // routing behind the next hop
	}
	return Undecided
}

// ourFault are words in a reply that speak of the sending side. "prohibition"
// is what Exim says where nothing else is configured.
var ourFault = []string{
	"spam", "block", "blacklist", "black list", "black-list", "blackhole", "denylist", "policy", "relay", "authenticat", "auth required",
	"spf", "sender", "dnsbl", "rbl", "not permitted", "not allowed", "reputation", "greylist", "helo", "reverse dns", "ptr", "your ip",
	"your host", "prohibit", "banned", "access denied", "is listed", "are listed", "abuse", "callout", "callback", "too many",
}

func blamesUs(text string) bool {
	for _, word := range ourFault {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}

// words is the text of a reply in lower case without what looks like an
// address: whoever asks for "spam@" shall not choose what the answer means.
func words(r Reply) string {
	var b strings.Builder
	text := strings.ToLower(strings.Join(r.Lines, " "))
	for {
		before, rest, open := strings.Cut(text, "<")
		for word := range strings.FieldsSeq(before) {
			if !strings.Contains(word, "@") {
				b.WriteString(word)
				b.WriteByte(' ')
			}
		}
		if !open {
			return b.String()
		}
		if _, after, closed := strings.Cut(rest, ">"); closed {
			rest = after
		}
		text = rest
	}
}

// bare judges a permanent reply without an enhanced code by its code, and
// where that is ambiguous by its words.
func bare(r Reply) Class {
	switch r.Code {
	case 552:
		return Full // RFC 5321: exceeded storage allocation
	case 556:
		return Unknown // RFC 7504: the domain takes no mail
	case 550, 551, 553:
		if blamesUs(words(r)) {
			return Refused
		}
		return Unknown
	case 500, 501, 502, 503, 504:
		return Undecided
	}
	return Refused
}
