package journal

import (
	"encoding/json"
	"net/netip"
	"slices"
	"time"
	"unicode/utf8"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Record is one kept decision with what was asked. Its JSON is what the files
// hold, and can be turned back into the request.
type Record struct {
	Time      time.Time    `json:"time"`
	Door      string       `json:"door"`
	Stage     policy.Stage `json:"stage,omitzero"` // none when Postfix names one that is not known
	Client    string       `json:"client"`         // "unknown" when Postfix does not know it
	Name      string       `json:"client_name,omitempty"`
	Helo      string       `json:"helo,omitempty"`
	Sender    string       `json:"sender"`
	Recipient string       `json:"recipient,omitempty"`
	QueueID   string       `json:"queue_id,omitempty"`
	Instance  string       `json:"instance,omitempty"`
	Login     string       `json:"login,omitempty"`
	Context   string       `json:"policy_context,omitempty"`

	Listener           string          `json:"listener,omitempty"`
	Chain              string          `json:"listener_chain,omitempty"`
	Port               uint16          `json:"client_port,omitempty"`
	ReverseName        string          `json:"reverse_name,omitempty"`
	Server             string          `json:"server,omitempty"`
	ServerPort         uint16          `json:"server_port,omitempty"`
	ESMTP              bool            `json:"esmtp,omitempty"`
	RecipientCount     int             `json:"recipient_count,omitempty"`
	Joined             string          `json:"joined,omitempty"`
	Size               int64           `json:"size,omitempty"`
	ETRNDomain         string          `json:"etrn_domain,omitempty"`
	Stress             bool            `json:"stress,omitempty"`
	SASLMethod         string          `json:"sasl_method,omitempty"`
	SASLSender         string          `json:"sasl_sender,omitempty"`
	TLS                *policy.TLS     `json:"tls,omitempty"`
	BodyHidden         bool            `json:"body_hidden,omitempty"`
	OnTop              []policy.Header `json:"on_top,omitempty"`
	CompatibilityLevel string          `json:"compatibility_level,omitempty"`
	MailVersion        string          `json:"mail_version,omitempty"`

	// Facts is what the checks found out.
	Facts    policy.Facts     `json:"facts,omitzero"`
	Decision *policy.Decision `json:"decision"`
}

// fill makes r the record of a decision. It shares slices with both.
func (r *Record) fill(q *policy.Request, d *policy.Decision) {
	*r = Record{
		Time: q.Time, Door: q.Door, Stage: q.Stage, Client: addrText(q.Client.Addr, "unknown"), Name: q.Client.Name, Helo: q.Helo,
		Sender: q.Sender.Raw, Recipient: q.Recipient.Raw, QueueID: q.QueueID, Instance: q.Instance, Login: q.SASL.Username, Context: q.Context,

		Listener: q.Listener, Chain: q.Chain, Port: q.Client.Port, ReverseName: q.Client.ReverseName,
		Server: addrText(q.ServerAddr, ""), ServerPort: q.ServerPort, ESMTP: q.ESMTP, RecipientCount: q.RecipientCount,
		Joined: q.Joined, Size: q.Size, ETRNDomain: q.ETRNDomain, Stress: q.Stress, SASLMethod: q.SASL.Method, SASLSender: q.SASL.Sender,
		BodyHidden: q.BodyHidden, OnTop: q.OnTop, CompatibilityLevel: q.CompatibilityLevel, MailVersion: q.MailVersion,
		Facts: q.Facts, Decision: d,
	}
	if q.TLS != (policy.TLS{}) {
		r.TLS = &q.TLS
	}
}

func addrText(a netip.Addr, none string) string {
	if !a.IsValid() {
		return none
	}
	return a.String()
}

// Request returns the request as the door handed it in, without facts.
// Addresses that were hashed stay so.
func (r *Record) Request() *policy.Request {
	q := &policy.Request{
		Time: r.Time, Stage: r.Stage, Door: r.Door, Listener: r.Listener, Context: r.Context, Chain: r.Chain,
		Client:     policy.Client{Port: r.Port, Name: r.Name, ReverseName: r.ReverseName},
		ServerPort: r.ServerPort, ESMTP: r.ESMTP, Helo: r.Helo, Sender: mailaddr.Parse(r.Sender), Recipient: mailaddr.Parse(r.Recipient),
		RecipientCount: r.RecipientCount, QueueID: r.QueueID, Instance: r.Instance, Joined: r.Joined, Size: r.Size,
		ETRNDomain: r.ETRNDomain, Stress: r.Stress, SASL: policy.SASL{Method: r.SASLMethod, Username: r.Login, Sender: r.SASLSender},
		BodyHidden: r.BodyHidden, OnTop: r.OnTop, CompatibilityLevel: r.CompatibilityLevel, MailVersion: r.MailVersion,
	}
	// What cannot be read stays invalid, which is what "unknown" means.
	q.Client.Addr, _ = netip.ParseAddr(r.Client)
	q.ServerAddr, _ = netip.ParseAddr(r.Server)
	if r.TLS != nil {
		q.TLS = *r.TLS
	}
	return q
}

// clone returns what shares nothing with what is reused.
func (r *Record) clone() *Record {
	c := *r
	c.Decision = r.Decision.Clone()
	c.OnTop = append([]policy.Header(nil), r.OnTop...)
	c.Facts.Listings = append([]policy.Listing(nil), r.Facts.Listings...)
	c.Facts.Marks = append([]string(nil), r.Facts.Marks...)
	c.Facts.Missing = append([]string(nil), r.Facts.Missing...)
	if r.TLS != nil {
		tls := *r.TLS
		c.TLS = &tls
	}
	return &c
}

// Answer is one answer of the DNS that came from the network, in the form of
// resolver.Recorded.
type Answer struct {
	Time time.Time
	// Name that was asked for: lower case, A-labels, no dot at the end.
	Name string
	// Type of the records: "A", "TXT", ...
	Type string
	// Records are the data of each: an address, a name, "10 mail.example.org", the
	// octets of a text. None, and no failure: there are none.
	Records []string
	// Failure is "timeout", "servfail", "refused", "unreachable" or "".
	Failure string
	// TTL is how long the answer may be kept.
	TTL time.Duration
}

// answerJSON is an Answer in the files. JSON has no octets: where a record is
// not UTF-8, each octet of all is the character of its number.
type answerJSON struct {
	Time    time.Time     `json:"time"`
	Name    string        `json:"name"`
	Type    string        `json:"type"`
	Records []string      `json:"records,omitempty"`
	Octets  bool          `json:"octets,omitempty"`
	Failure string        `json:"failure,omitempty"`
	TTL     time.Duration `json:"ttl"`
}

// MarshalJSON implements [json.Marshaler].
func (a *Answer) MarshalJSON() ([]byte, error) {
	out := answerJSON{a.Time, a.Name, a.Type, a.Records, false, a.Failure, a.TTL}
	if slices.ContainsFunc(a.Records, func(s string) bool { return !utf8.ValidString(s) }) {
		out.Octets, out.Records = true, make([]string, len(a.Records))
		for i, s := range a.Records {
			runes := make([]rune, len(s))
			for j := range len(s) {
				runes[j] = rune(s[j])
			}
			out.Records[i] = string(runes)
		}
	}
	return json.Marshal(&out)
}

// UnmarshalJSON implements [json.Unmarshaler].
func (a *Answer) UnmarshalJSON(text []byte) error {
	var in answerJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return err
	}
	if in.Octets {
		for i, s := range in.Records {
			octets := make([]byte, 0, len(s))
			for _, r := range s {
				octets = append(octets, byte(r))
			}
			in.Records[i] = string(octets)
		}
	}
	*a = Answer{in.Time, in.Name, in.Type, in.Records, in.Failure, in.TTL}
	return nil
}
