// Package dkimverify verifies the DKIM signatures (RFC 6376, RFC 8463) and the
// ARC chain (RFC 8617) of a message while it comes in, without holding it in
// memory.
package dkimverify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/internal/dkimsig"
	"postern/internal/mailaddr"
)

// ahead is how far the clock of a signer may be ahead of ours.
const ahead = time.Hour

// Results of a signature, as in Authentication-Results (RFC 8601 section
// 2.7.1).
const (
	None      = "none" // of a chain that is not there
	Pass      = "pass"
	Fail      = "fail"
	Policy    = "policy" // it may be valid, and does not count
	TempError = "temperror"
	PermError = "permerror"
)

// Signature is what was found out about one signature.
type Signature struct {
	// Domain is d=, without white space and otherwise as it is written. It can
	// hold anything.
	Domain string
	// Identity is i=, Selector s=, Algorithm a= and Prefix the first eight
	// characters of b= (RFC 6008). They can hold anything.
	Identity, Selector, Algorithm, Prefix string
	// Result is one of the constants, and Reason says why it is not a pass, or
	// what is to be known of one.
	Result, Reason string

	// How it was come by, for whoever asks. BodyHash is of the body that came,
	// Claimed what bh= says of it, Hash that of the fields; Record is the last key
	// record that was tried, Canon c=.
	KeyName, Record, Canon string
	BodyHash, Hash         [sha256.Size]byte
	Claimed                []byte
	Bits                   int      // of an RSA key
	Signed                 []string // h=
}

// Options are for one message.
type Options struct {
	// LookupTXT returns the texts of a key record, none if it does not exist.
	// An error is temporary. It is called from several goroutines, and returns
	// soon after ctx is done.
	LookupTXT func(ctx context.Context, name string) ([]string, error)
	// Limit is the most time for one look-up.
	Limit time.Duration
	// Most is how many signatures are looked at, the first ones.
	Most int
	// ARC wants the chain looked at.
	ARC bool
	// MinBits is the least length of an RSA key that counts. 0 stands for 1024,
	// and less is never taken (RFC 8301 section 3.2).
	MinBits int
	// Partial lets a signature count that leaves out the end of the body (l=).
	Partial bool
	// Now is when the message came: a signature from the future, or one that has
	// expired, does not count. The zero value does not look.
	Now time.Time
}

// ErrUnfinished is returned when the signatures could not be looked at to the
// end.
var ErrUnfinished = errors.New("the signatures were not verified in time")

// Message verifies the signatures of one message. It is used by one goroutine.
type Message struct {
	o          Options
	fields     *dkimsig.Fields
	signatures []*signature
	chain      *chain
	bodies     []*body
	keys       []*keys
}

// body is one canonical form of the body, for all signatures that use it.
type body struct {
	*dkimsig.Body
	canon dkimsig.Canon
	limit int64
	sum   [sha256.Size]byte
}

// Start begins with the header, all fields in the order in which they came,
// each with its CRLF. Write and Wait follow; until Wait it is only memory.
func Start(header string, o Options) *Message {
	m := &Message{o: o, fields: dkimsig.NewFields(header)}
	m.o.MinBits = max(o.MinBits, 1024)
	for i, f := range m.fields.Named("DKIM-Signature") {
		if i == o.Most {
			break
		}
		m.signatures = append(m.signatures, m.read(f, false))
	}
	if o.ARC {
		m.chain = m.readChain()
	}
	return m
}

// Write gives it the next bytes of the body, and reports whether it needs more.
func (m *Message) Write(p []byte) (more bool) {
	for _, b := range m.bodies {
		b.Write(p)
	}
	return len(m.bodies) > 0
}

// Wait ends the message, asks for the keys and returns its signatures, in their
// order. The error is [ErrUnfinished]; nothing is known then.
func (m *Message) Wait(ctx context.Context) ([]Signature, error) {
	m.ask(ctx)
	if ctx.Err() != nil {
		return nil, ErrUnfinished
	}
	for _, b := range m.bodies {
		b.sum = b.Sum()
	}
	out := make([]Signature, len(m.signatures))
	for i, s := range m.signatures {
		s.verify(m)
		out[i] = s.Signature
	}
	if m.chain != nil {
		m.chain.verify(m)
	}
	return out, nil
}

// Chain returns, after Wait, what was found out about the chain.
func (m *Message) Chain() Chain {
	if m.chain == nil {
		return Chain{Result: None}
	}
	return m.chain.Chain
}

// signature is a DKIM-Signature, or an ARC-Message-Signature.
type signature struct {
	Signature
	field            dkimsig.Field
	header, bodyForm dkimsig.Canon
	length           int64 // l=, -1 without it
	sig              []byte
	body             *body
	keys             *keys
}

var required = [...]string{"a", "b", "bh", "d", "h", "s"}

// read reads a signature as far as it can be without its key. What is wrong is
// its Result.
func (m *Message) read(f dkimsig.Field, arc bool) *signature {
	s := &signature{field: f}
	s.Result = PermError
	if err := s.parse(m, arc); err != nil {
		s.Reason = err.Error()
	} else if s.Result != Policy {
		s.Result = ""
		s.body = m.bodyOf(s.bodyForm, s.length)
		s.keys = m.keysOf(s.KeyName)
	}
	return s
}

func (s *signature) parse(m *Message, arc bool) error {
	tags, err := dkimsig.ParseTags(s.field.Value())
	s.Domain, s.Selector, s.Algorithm = tags.Bare("d"), tags.Bare("s"), tags.Bare("a")
	b := tags.Bare("b")
	s.Prefix = b[:min(len(b), 8)]
	if err != nil {
		return err
	}
	if v := tags.Bare("v"); !arc && v != "1" {
		return errors.New("the version (v=) is not 1")
	}
	for _, name := range required {
		if _, ok := tags.Get(name); !ok {
			return fmt.Errorf("there is no %s=", name)
		}
	}
	if s.KeyName, err = keyName(s.Selector, s.Domain); err != nil {
		return err
	}
	if !arc {
		if _, ok := tags.Get("i"); ok {
			s.Identity = tags.Bare("i")
			if !within(s.Identity, s.Domain) {
				return errors.New("the identity (i=) is not of the domain (d=)")
			}
		}
	}
	s.Signed = tags.List("h")
	has := func(name string) bool {
		return slices.ContainsFunc(s.Signed, func(h string) bool { return strings.EqualFold(h, name) })
	}
	switch {
	case len(s.Signed) > maxSigned:
		return errors.New("too many fields are signed")
	case !has("From"):
		return errors.New("From is not signed")
	case arc && has("ARC-Seal"):
		return errors.New("the seal itself is signed")
	}
	if s.header, s.bodyForm, err = dkimsig.ParseCanon(tags.Bare("c")); err != nil {
		return err
	}
	s.Canon = s.header.String() + "/" + s.bodyForm.String()
	if _, ok := tags.Get("q"); ok && !slices.Contains(tags.List("q"), "dns/txt") {
		return errors.New("the key is not in the DNS (q=)")
	}
	if s.length, err = tags.Number("l"); err != nil {
		return err
	}
	if err := algorithm(s.Algorithm); err != nil {
		return err
	}
	if s.Claimed, err = tags.Binary("bh"); err != nil {
		return err
	}
	if s.sig, err = tags.Binary("b"); err != nil {
		return err
	}
	return s.times(tags, m.o.Now)
}

// times looks at when it was signed, and when it expires.
func (s *signature) times(tags dkimsig.Tags, now time.Time) error {
	signed, err := tags.Number("t")
	if err != nil {
		return err
	}
	expires, err := tags.Number("x")
	if err != nil {
		return err
	}
	if expires >= 0 && signed >= 0 && expires <= signed {
		return errors.New("it has expired before it was made")
	}
	if now.IsZero() {
		return nil
	}
	if expires >= 0 && now.Unix() > expires {
		return errors.New("it has expired")
	}
	if signed > now.Add(ahead).Unix() {
		s.Result, s.Reason = Policy, "signed in the future"
	}
	return nil
}

func algorithm(a string) error {
	switch a {
	case "rsa-sha256", "ed25519-sha256":
		return nil
	case "rsa-sha1":
		return errors.New("SHA-1 is too weak")
	}
	return errors.New("the algorithm is not known")
}

// keyName returns where a key stands, or an error for what can be no name.
func keyName(selector, domain string) (string, error) {
	name := selector + "._domainkey." + strings.TrimSuffix(domain, ".")
	if len(name) > 253 || domain == "" {
		return "", errors.New("the domain is none")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", errors.New("the domain is none")
		}
		for i := range len(label) {
			c := label[i]
			if c <= ' ' || c == 0x7f || strings.IndexByte(`"(),:;<>@[\]`, c) >= 0 {
				return "", errors.New("the domain is none")
			}
		}
	}
	return name, nil
}

// within reports whether an identity is of a domain or of one below it.
func within(identity, domain string) bool {
	at := strings.LastIndexByte(identity, '@')
	if at < 0 {
		return false
	}
	own := strings.ToLower(identity[at+1:])
	domain = strings.ToLower(domain)
	return own == domain || strings.HasSuffix(own, "."+domain)
}

func (m *Message) bodyOf(c dkimsig.Canon, limit int64) *body {
	for _, b := range m.bodies {
		if b.canon == c && b.limit == limit {
			return b
		}
	}
	b := &body{Body: dkimsig.NewBody(c, limit), canon: c, limit: limit}
	m.bodies = append(m.bodies, b)
	return b
}

// verify says what the signature is worth. All that it needs is there.
func (s *signature) verify(m *Message) {
	if s.Result != "" {
		return
	}
	s.BodyHash = s.body.sum
	s.Hash = m.fields.Hash(s.Signed, s.header, dkimsig.Unsigned(s.field))
	key := s.keys.verify(&s.Signature, s.Hash, s.sig, m.o.MinBits)
	beyond := s.length >= 0 && s.body.Length() > s.length
	switch {
	case key == nil && s.Result != Fail:
	case string(s.Claimed) != string(s.BodyHash[:]):
		s.Result, s.Reason = Fail, "the body has been changed"
	case s.Result == Fail:
	case s.length > s.body.Length():
		s.Result, s.Reason = Fail, "the body is shorter than what was signed (l=)"
	case beyond && !m.o.Partial:
		s.Result, s.Reason = Policy, "only a part of the body is signed (l=)"
	case beyond:
		s.Reason = "only a part of the body is signed (l=)"
	case key.Testing:
		s.Reason = "the domain tests its keys"
	}
}

// keys are the key records of one name.
type keys struct {
	name  string
	texts []string
	err   error
}

// Bounds of what is asked for.
const (
	maxRecords = 3  // of a name, that are tried
	maxNames   = 30 // of a message
	maxSigned  = 500
)

var errNames = errors.New("too many keys are asked for")

// keysOf returns the keys of a name, which are asked for once for a message.
func (m *Message) keysOf(name string) *keys {
	name = mailaddr.Domain(name)
	for _, k := range m.keys {
		if k.name == name {
			return k
		}
	}
	if len(m.keys) == maxNames {
		return &keys{err: errNames}
	}
	k := &keys{name: name}
	m.keys = append(m.keys, k)
	return k
}

// ask asks for all keys at once.
func (m *Message) ask(ctx context.Context) {
	if len(m.keys) == 0 {
		return
	}
	c, cancel := context.WithTimeout(ctx, m.o.Limit)
	defer cancel()
	var others sync.WaitGroup
	for _, k := range m.keys[1:] {
		others.Go(func() { k.texts, k.err = m.o.LookupTXT(c, k.name) })
	}
	first := m.keys[0] // most messages have one: without a second goroutine
	first.texts, first.err = m.o.LookupTXT(c, first.name)
	others.Wait()
}

// verify tries the keys of a name and returns the one that made a signature.
// Without one it says in s what is wrong.
func (k *keys) verify(s *Signature, sum [sha256.Size]byte, sig []byte, minBits int) *dkimsig.Key {
	if k.err != nil {
		s.Result, s.Reason = TempError, "the key cannot be asked for: "+k.err.Error()
		return nil
	}
	s.Result, s.Reason = PermError, "there is no key"
	tried, unlike := 0, "" // what is wrong with texts that are no key records
	for _, text := range k.texts {
		key, err := dkimsig.ParseKey(text)
		if errors.Is(err, dkimsig.ErrNoKey) {
			unlike = err.Error()
			continue
		}
		if tried++; tried > maxRecords {
			break
		}
		s.Record = text
		if err != nil {
			s.Reason = err.Error()
			continue
		}
		s.Bits = key.Bits()
		switch {
		case !strings.HasPrefix(s.Algorithm, key.Algorithm()+"-"):
			s.Reason = "the key is of another kind than the signature"
		case key.Hashes != nil && !slices.Contains(key.Hashes, "sha256"):
			s.Reason = "the key is not for SHA-256 (h=)"
		case key.Strict && s.Identity != "" && !strings.EqualFold(s.Identity[strings.LastIndexByte(s.Identity, '@')+1:], s.Domain):
			s.Reason = "the key is not for sub-domains (t=s)"
		case s.Bits > 0 && s.Bits < minBits:
			s.Result, s.Reason = Policy, fmt.Sprintf("the RSA key has %d bits, %d are wanted", s.Bits, minBits)
		case !key.Verify(sum, sig):
			s.Result, s.Reason = Fail, "the signature is not that of the message"
		default:
			s.Result, s.Reason = Pass, ""
			return key
		}
	}
	if tried == 0 && unlike != "" {
		s.Reason = "there is no key: " + unlike
	}
	return nil
}

// Header gathers the header of a message in the form that [Start] takes. The
// zero value is empty.
type Header struct {
	text    strings.Builder
	hostile string
}

// maxHeader bounds what is kept of a header; Postfix cuts at 60000 bytes when
// a milter is there.
const maxHeader = 1 << 20

// Add adds a field; value is all behind the colon, lines joined by LF.
func (h *Header) Add(name, value string) {
	if h.hostile != "" {
		return
	}
	for rest := value; ; {
		_, next, more := strings.Cut(rest, "\n")
		if !more {
			break
		}
		if next == "" || next[0] != ' ' && next[0] != '\t' {
			h.hostile = "a header field with a line that does not belong to it"
			return
		}
		rest = next
	}
	if h.text.Len()+len(name)+len(value) > maxHeader {
		h.hostile = "the header is too large"
		return
	}
	h.text.WriteString(name)
	h.text.WriteByte(':')
	h.text.WriteString(strings.ReplaceAll(value, "\n", "\r\n"))
	h.text.WriteString("\r\n")
}

// Hostile says why the header cannot be trusted at all, "" when it can.
func (h *Header) Hostile() string { return h.hostile }

// Take returns the header and empties h.
func (h *Header) Take() string {
	out := h.text.String()
	h.text.Reset()
	return out
}
