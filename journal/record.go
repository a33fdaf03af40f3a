package journal

import (
	"net/netip"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Record is one kept decision with what was asked. Its JSON is what the files
// hold, and can be turned back into the request.
type Record struct {
	Time      time.Time    `json:"time"`
	Door      string       `json:"door"`
	Stage     policy.Stage `json:"stage"`
	Client    string       `json:"client"` // "unknown" when Postfix does not know it
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

// Answer is one answer of the DNS that came from the network.
type Answer struct {
	Time time.Time `json:"time"`
	// Name that was asked for: lower case, A-labels, no trailing dot.
	Name string `json:"name"`
	// Type of the records: "A", "TXT", ...
	Type string `json:"type"`
	// Rcode is what the server said: "NOERROR", "NXDOMAIN", ..., or why there is
	// no answer: "timeout", "unreachable", ...
	Rcode string `json:"rcode"`
	// Records in their text form: addresses, names, "10 mail.example.org" for MX,
	// the joined strings of a TXT record as they are.
	Records []string `json:"records,omitempty"`
	// TTL is how long the answer may be kept.
	TTL time.Duration `json:"ttl"`
}
