package dkimverify

import (
	"errors"
	"fmt"
	"strings"

	"postern/internal/dkimsig"
)

// MaxSets is how many sets a chain may have (RFC 8617 section 4.2.1).
const MaxSets = 50

// Chain is what was found out about the ARC chain of a message.
type Chain struct {
	// Result is [None], [Pass], [Fail], or [TempError] when a key could not be
	// asked for; Reason says why it is not a pass.
	Result, Reason string
	// Sets are its sets, the first one first; none when they cannot be told
	// apart. Unless Result is Pass anybody can have written them.
	Sets []Set
}

// Set is one set of a chain: what one host has seen, signed and sealed.
type Set struct {
	// Sealer is who has sealed it: d= of ARC-Seal, as it is written.
	Sealer, Selector string
	// Signer is d= of ARC-Message-Signature.
	Signer string
	// Results is ARC-Authentication-Results behind the instance.
	Results string
}

// chain is a chain at work.
type chain struct {
	Chain
	seals   []*seal // by instance
	message *signature
	ordered []dkimsig.Field // all fields of the sets, in the order in which they are sealed
}

// seal is one ARC-Seal.
type seal struct {
	Signature
	field dkimsig.Field
	sig   []byte
	keys  *keys
}

var errInstance = errors.New("an ARC field without a proper instance (i=)")

// readChain reads the sets as far as they can be without keys. It returns nil
// for a message without any.
func (m *Message) readChain() *chain {
	names := [...]string{"ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"}
	var sets [MaxSets + 1][len(names)]dkimsig.Field
	c := &chain{Chain: Chain{Result: Fail}}
	most, count := 0, 0
	for kind, name := range names {
		for _, f := range m.fields.Named(name) {
			n, err := instance(f)
			if err != nil {
				c.Reason = err.Error()
				return c
			}
			if sets[n][kind] != "" {
				c.Reason = fmt.Sprintf("set %d has two %s", n, name)
				return c
			}
			sets[n][kind] = f
			most = max(most, n)
			count++
		}
	}
	if most == 0 {
		return nil
	}
	if count != most*len(names) {
		c.Reason = "a set is not complete"
		return c
	}
	for n := 1; n <= most; n++ {
		set := &sets[n]
		s, err := m.readSeal(set[2], n)
		if err != nil {
			c.Reason = fmt.Sprintf("seal %d: %v", n, err)
			return c
		}
		c.seals = append(c.seals, s)
		tags, _ := dkimsig.ParseTags(set[1].Value())
		_, results, _ := strings.Cut(set[0].Value(), ";")
		c.Sets = append(c.Sets, Set{Sealer: s.Domain, Selector: s.Selector, Signer: tags.Bare("d"), Results: results})
		c.ordered = append(c.ordered, set[:]...)
	}
	c.message = m.read(sets[most][1], true)
	if c.message.Result != "" {
		c.Reason = fmt.Sprintf("message signature %d: %s", most, c.message.Reason)
		return c
	}
	for _, s := range c.seals {
		s.keys = m.keysOf(s.KeyName)
	}
	c.Result = ""
	return c
}

// instance returns the number of the set that a field belongs to.
func instance(f dkimsig.Field) (int, error) {
	// In ARC-Authentication-Results only the beginning is a list of tags.
	value := f.Value()
	if strings.EqualFold(f.Name(), "ARC-Authentication-Results") {
		value, _, _ = strings.Cut(value, ";")
	}
	tags, err := dkimsig.ParseTags(value)
	if err != nil {
		return 0, errInstance
	}
	n, err := tags.Number("i")
	if err != nil || n < 1 || n > MaxSets {
		return 0, errInstance
	}
	return int(n), nil
}

// readSeal reads a seal as far as it can be without its key.
func (m *Message) readSeal(f dkimsig.Field, n int) (*seal, error) {
	tags, err := dkimsig.ParseTags(f.Value())
	if err != nil {
		return nil, err
	}
	s := &seal{field: f}
	s.Domain, s.Selector, s.Algorithm = tags.Bare("d"), tags.Bare("s"), tags.Bare("a")
	for _, name := range [...]string{"h", "bh"} {
		if _, ok := tags.Get(name); ok {
			return nil, fmt.Errorf("there is a %s=", name)
		}
	}
	switch cv := strings.ToLower(tags.Bare("cv")); {
	case cv == "fail":
		return nil, errors.New("it says that the chain was broken already (cv=fail)")
	case n == 1 && cv != "none" || n > 1 && cv != "pass":
		return nil, errors.New("what it says of the chain before it cannot be (cv=)")
	}
	if err := algorithm(s.Algorithm); err != nil {
		return nil, err
	}
	if s.sig, err = tags.Binary("b"); err != nil {
		return nil, err
	}
	s.KeyName, err = keyName(s.Selector, s.Domain)
	return s, err
}

// verify says what the chain is worth (RFC 8617 section 5.2).
func (c *chain) verify(m *Message) {
	if c.Result != "" {
		return
	}
	c.message.verify(m)
	if c.message.Result != Pass {
		c.broken(fmt.Sprintf("message signature %d", len(c.seals)), &c.message.Signature)
		return
	}
	for n := len(c.seals); n > 0; n-- {
		s := c.seals[n-1]
		sum := dkimsig.HashSeal(c.ordered[:3*n-1], dkimsig.Unsigned(s.field))
		if s.keys.verify(&s.Signature, sum, s.sig, m.o.MinBits) == nil {
			c.broken(fmt.Sprintf("seal %d", n), &s.Signature)
			return
		}
	}
	c.Result = Pass
}

// broken says that a part is not valid.
func (c *chain) broken(what string, s *Signature) {
	c.Result = Fail
	if s.Result == TempError {
		c.Result = TempError
	}
	c.Reason = what + ": " + s.Reason
}
