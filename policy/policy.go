// Package policy holds the words that every other package shares: the request
// that a door hands in, the verdict that comes out, and what a check is.
//
// A door (policyd, milter) translates its protocol into a [Request]; the
// pipeline runs a chain of [Check] values over it; the [Decision] goes back to
// the same door. Nothing here does I/O, and only the standard library is
// imported, so that every package can import this one.
package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Stage is the point of the SMTP dialogue at which a request is made. The
// order of the constants is the order of the dialogue.
type Stage uint8

// The stages, with the name that Postfix gives them as protocol_state
// (SMTPD_POLICY_README). HELO and EHLO are one stage.
const (
	StageUnknown      Stage = iota
	StageConnect            // CONNECT
	StageHelo               // HELO, EHLO
	StageMail               // MAIL
	StageRcpt               // RCPT
	StageData               // DATA (BDAT is shown as DATA)
	StageEndOfMessage       // END-OF-MESSAGE
	StageVrfy               // VRFY
	StageEtrn               // ETRN
	stageCount
)

var stageNames = [stageCount]string{
	"unknown", "connect", "helo", "mail", "rcpt", "data", "end-of-message", "vrfy", "etrn",
}

// String returns the lower-case name used in configuration, logs and metrics.
func (s Stage) String() string {
	if s < stageCount {
		return stageNames[s]
	}
	return stageNames[StageUnknown]
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Stage) UnmarshalText(text []byte) error {
	for i, name := range stageNames {
		if name == string(text) && i > 0 {
			*s = Stage(i)
			return nil
		}
	}
	return fmt.Errorf("unknown stage %q (one of connect, helo, mail, rcpt, data, end-of-message, vrfy, etrn)", text)
}

// MarshalText implements [encoding.TextMarshaler].
func (s Stage) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// StageSet is a set of stages.
type StageSet uint16

// Stages returns the set of the given stages.
func Stages(stages ...Stage) StageSet {
	var set StageSet
	for _, s := range stages {
		set |= 1 << s
	}
	return set
}

// AllStages is the set of every stage that Postfix can ask at.
const AllStages = StageSet(1<<stageCount - 2)

// Has reports whether s is in the set.
func (set StageSet) Has(s Stage) bool { return set&(1<<s) != 0 }

// Address is an envelope address in the forms that checks compare.
// The zero Address is the null sender, or no address at all.
type Address struct {
	// Raw is the address as the client gave it, in internal form: no angle
	// brackets, local part unquoted, case kept.
	Raw string
	// Local is the part before the last @, case kept; all of Raw when there is no @.
	Local string
	// Domain is the part after the last @: lower case, A-labels, no trailing
	// dot. Empty for the null sender and for a bare user name.
	Domain string
}

// Client is who Postfix says is connected.
type Client struct {
	// Addr has no zone, and an IPv4-mapped address is IPv4 here. It is invalid
	// when Postfix no longer knows the peer.
	Addr netip.Addr
	// Port is 0 when not known.
	Port uint16
	// Name is the reverse name that Postfix verified by a forward look-up:
	// lower case, no trailing dot, empty when there is none.
	Name string
	// ReverseName is the reverse name as found, not verified; a stranger can
	// put anything there. Empty when there is none.
	ReverseName string
}

// SASL is what the client authenticated as. All fields are empty without AUTH.
type SASL struct {
	Method, Username string
	// Sender is the MAIL FROM AUTH= parameter: the client's word, no identity.
	Sender string
}

// TLS is the state of the client's connection. All fields are empty on plain text.
type TLS struct {
	Protocol string `json:"protocol,omitempty"`
	Cipher   string `json:"cipher,omitempty"`
	KeySize  int    `json:"key_size,omitempty"` // bits in use
	// CertSubject and CertIssuer are common names, decoded from xtext, and
	// empty unless Postfix trusts the certificate.
	CertSubject string `json:"cert_subject,omitempty"`
	CertIssuer  string `json:"cert_issuer,omitempty"`
	// CertFingerprint and PubkeyFingerprint are hexadecimal with colons, and
	// are given for untrusted certificates too.
	CertFingerprint   string `json:"cert_fingerprint,omitempty"`
	PubkeyFingerprint string `json:"pubkey_fingerprint,omitempty"`
	SNI               string `json:"sni,omitempty"` // server name the client asked for, Postfix 3.12+
}

// Request is one question about one SMTP session. A door fills it, checks read
// it and add to Facts. It belongs to the goroutine that runs the pipeline: a
// check that hands work to another goroutine copies what it needs. Strings in
// it stay valid after the request; the Request value itself is reused.
type Request struct {
	// Time is when the request arrived: the only clock of a decision.
	Time time.Time
	// Stage is the SMTP command being answered, whatever restriction list
	// the question came from.
	Stage Stage
	// Door is "policy", "milter" or "explain"; Listener names the socket.
	Door, Listener string
	// Context is Postfix's policy_context: the name of the chain to use.
	Context string
	// Chain is the chain that the listener names; Context goes before it.
	Chain string
	// JudgedBy is the chain that judges the request. The pipeline sets it.
	JudgedBy string
	// Shadow is set when nothing that the check or inspector at work says has an
	// effect: it, its chain or the whole daemon only watches. The pipeline sets it.
	Shadow bool

	Client         Client
	ServerAddr     netip.Addr
	ServerPort     uint16
	ESMTP          bool   // protocol_name is ESMTP
	Helo           string // as given, empty if none
	Sender         Address
	Recipient      Address
	RecipientCount int    // accepted recipients, only at data and end-of-message
	QueueID        string // empty until the first recipient is accepted
	Instance       string // one per mail transaction, unique per host only
	Joined         string // at the milter door: the Instance that the policy door knows the transaction by, when it does
	Size           int64  // bytes declared by SIZE=, or received at end-of-message
	ETRNDomain     string
	Stress         bool
	SASL           SASL
	TLS            TLS
	BodyHidden     bool // the door is shown header fields, and no body, in this session
	// OnTop are the fields that verdicts on the envelope put on top of the
	// message. The milter door knows them at StageEndOfMessage.
	OnTop              []Header
	CompatibilityLevel string // Postfix 3.8+
	MailVersion        string // Postfix 3.8+

	// Facts is what the checks before this one learned.
	Facts Facts

	// DryRun asks for the answer only: no check may change any state, count
	// anything against the client or start background work that does.
	DryRun bool
	// Probe takes notes for `postern explain`. Nil on the request path, so
	// look before building a note.
	Probe *Probe
}

// NullSender reports whether the envelope sender was given and is <>.
func (r *Request) NullSender() bool {
	return r.Stage >= StageMail && r.Stage <= StageEndOfMessage && r.Sender.Raw == ""
}

// Facts is what checks learned about a request. Later checks and the doors
// read it. The zero value knows nothing.
type Facts struct {
	SPF      SPF       `json:"spf,omitzero"`
	Auth     Auth      `json:"auth,omitzero"`
	Provider string    `json:"provider,omitempty"`  // name of the provider whose networks hold the client
	Listings []Listing `json:"listings,omitempty"`  // DNSBL and DNSWL entries found
	RBLScore int       `json:"rbl_score,omitempty"` // sum of the weights of Listings
	// ListsAsked is set when DNS lists have been asked, or what they said is
	// remembered.
	ListsAsked bool `json:"lists_asked,omitempty"`
	// ListsRefuse is set when they would refuse the request, but may not.
	ListsRefuse bool `json:"lists_refuse,omitempty"`
	// Marks are suspicions: stable slugs such as "rbl-score" or "helo-invalid".
	Marks []string `json:"marks,omitempty"`
	// MarkScore is what the marks weigh together, those that have a weight. It
	// adds to what DNS lists say.
	MarkScore int `json:"mark_score,omitempty"`
	// Missing names sources that could not be asked ("dnsbl zen.example: timeout").
	Missing []string `json:"missing,omitempty"`
}

// SPF is the outcome of an SPF check (RFC 7208). The zero value means that
// none was made.
type SPF struct {
	// Result is "pass", "fail", "softfail", "neutral", "none", "temperror",
	// "permerror", or [SPFTooWide].
	Result string `json:"result,omitempty"`
	// Domain is the domain that was checked, lower case. It is empty when the
	// identity names none.
	Domain string `json:"domain,omitempty"`
	// Identity is whose domain it is: "mailfrom", or "helo" for the null sender.
	Identity string `json:"identity,omitempty"`
}

// Auth is what mail authentication found out about a message, in the words of
// RFC 8601. The zero value means that nobody has looked.
type Auth struct {
	// DKIM is the result of the best signature, DMARC of the author who fares
	// worst, ARC of the chain. DMARC is "permerror" without one readable From.
	DKIM  string `json:"dkim,omitempty"`
	DMARC string `json:"dmarc,omitempty"`
	ARC   string `json:"arc,omitempty"`
	// Policy is what the owner of that author's domain asks for of a message that
	// fails: "none", "quarantine" or "reject"; "" without a record.
	Policy string `json:"policy,omitempty"`
	// Signers are the domains of valid signatures, Authors those in From, in
	// lower case.
	Signers []string `json:"signers,omitempty"`
	Authors []string `json:"authors,omitempty"`
	// Results is the value of the Authentication-Results that are written, lines
	// joined by LF.
	Results string `json:"results,omitempty"`
	// Summary says all results in one line, for the log.
	Summary string `json:"summary,omitempty"`
	// Override says who speaks for a message that fails DMARC: "arc", "" for
	// nobody.
	Override string `json:"override,omitempty"`
}

// SPFTooWide is the result of a pass that does not count, because the record
// lets so many clients pass that it says nothing: RFC 8601 section 2.7.2 calls
// it "policy".
const SPFTooWide = "policy"

// Listing is one entry found on a DNS list.
type Listing struct {
	List   string `json:"list"`             // public name of the list, never its query key
	What   string `json:"what"`             // the address or domain that is listed
	Answer string `json:"answer,omitempty"` // the A records, "127.0.0.2 127.0.0.4"
	Weight int    `json:"weight"`
}

// Mark adds a suspicion, once.
func (f *Facts) Mark(slug string) {
	if slices.Contains(f.Marks, slug) {
		return
	}
	f.Marks = append(f.Marks, slug)
}

// Weigh adds a suspicion with a weight, once.
func (f *Facts) Weigh(slug string, weight int) {
	n := len(f.Marks)
	if f.Mark(slug); len(f.Marks) > n {
		f.MarkScore += weight
	}
}

// Suspicious reports whether any check left a mark.
func (f *Facts) Suspicious() bool { return len(f.Marks) > 0 }

// Reset forgets everything and keeps the memory.
func (f *Facts) Reset() {
	*f = Facts{Listings: f.Listings[:0], Marks: f.Marks[:0], Missing: f.Missing[:0]}
}

// Action is what a verdict asks for.
type Action uint8

// The actions. Their order carries no meaning.
const (
	Continue      Action = iota // no objection: ask the next check
	Allow                       // let the request past the checks named in Verdict.Skip
	Permit                      // accept for relaying; honoured only in a chain with purpose = "relay"
	Reject                      // refuse for good, 5xx
	Defer                       // refuse for now, 4xx, at once
	DeferIfPermit               // refuse for now unless something else refuses for good
	Hold                        // accept into the hold queue
	Discard                     // accept and throw away
	Redirect                    // deliver to Verdict.Arg instead
	actionCount
)

var actionNames = [actionCount]string{
	"continue", "allow", "permit", "reject", "defer", "defer-if-permit", "hold", "discard", "redirect",
}

// String returns the lower-case name used in configuration, logs and metrics.
func (a Action) String() string {
	if a < actionCount {
		return actionNames[a]
	}
	return "unknown"
}

// MarshalText implements [encoding.TextMarshaler].
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *Action) UnmarshalText(text []byte) error {
	for i, name := range actionNames {
		if name == string(text) {
			*a = Action(i)
			return nil
		}
	}
	return fmt.Errorf("unknown action %q", text)
}

// Refuses reports whether the remote client gets a 4xx or 5xx reply.
func (a Action) Refuses() bool { return a == Reject || a == Defer || a == DeferIfPermit }

// Header is one header field to put on top of an accepted message.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Verdict is what a check says. Its zero value is Continue: no opinion, ask the next.
type Verdict struct {
	Action Action   `json:"action"`
	Reason string   `json:"reason,omitempty"` // stable slug for logs and metrics, from a closed set: "rbl-listed"
	Reply  Reply    `json:"reply,omitzero"`   // for the remote client; needed when Action.Refuses()
	Detail string   `json:"detail,omitempty"` // for our own log and trace only
	Skip   []string `json:"skip,omitempty"`   // with Allow: names of the checks to pass over; not to be changed
	Arg    string   `json:"arg,omitempty"`    // with Redirect: the address
	Add    []Header `json:"add,omitempty"`    // fields for the message if it is accepted; once per message
}

// Traits is what the pipeline must know of a check before it runs it.
type Traits struct {
	// Stages are those at which the check has the facts it needs. At other
	// stages the pipeline passes it over. A chain that can never reach one of
	// them is refused at load.
	Stages StageSet
	// Waits is set when Evaluate may wait for the network.
	Waits bool
	// Prompt is set when Evaluate begins with all that Hint knows: a hint right
	// before it is of no use.
	Prompt bool
	// Last is set when the check must be the last of its chain.
	Last bool
}

// Check judges one request. It is safe for concurrent use.
type Check interface {
	// Name is the check's name in configuration, logs and metrics: "rbl".
	Name() string
	// Traits is constant for one value.
	Traits() Traits
	// Evaluate says what should happen to req. An error means "could not
	// decide"; what an undecided check does is the pipeline's business. It
	// returns soon after ctx is done. ctx has a deadline.
	Evaluate(ctx context.Context, req *Request) (Verdict, error)
}

// Idler is a check that can tell that its settings give it nothing to do. The
// pipeline then leaves it out.
type Idler interface {
	Check
	// Idle is constant for one value.
	Idle() bool
}

// Refunder is a check that takes what it gives back when the client is refused
// after all.
type Refunder interface {
	Check
	// Refund is called when a request is refused, by whatever check or inspector,
	// before that is answered, with the final decision; d.Steps say whether this
	// check was asked. It is not called for a DryRun, and only if a chain has the
	// check. It returns soon after ctx is done.
	Refund(ctx context.Context, req *Request, d *Decision)
}

// Hinter is a check that can sometimes tell from memory that it would refuse.
// The pipeline asks it before the first check of the chain that waits.
type Hinter interface {
	Check
	// Hint returns the verdict and true when it is already certain. It does
	// no I/O and changes no state.
	Hint(req *Request) (Verdict, bool)
}
