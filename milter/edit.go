package milter

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	gomilter "github.com/d--j/go-milter"
	"go.uber.org/zap"

	"postern/internal/mailaddr"
	"postern/policy"
)

// fields is what must be known of the header fields of a message to change
// them: names, and whether a value is the same. It keeps no values.
type fields struct {
	names []byte
	ends  []int
	sums  []uint64
}

// maxNames is the most bytes of names of one message. RFC 5322 leaves a name
// less than a line of 998 bytes, and Postfix's own limit is 60000.
const maxNames = 4 << 20

var seed = maphash.MakeSeed()

func (f *fields) len() int { return len(f.ends) }

// add takes a field and reports false when there are too many.
func (f *fields) add(field policy.Field, limit int) bool {
	if len(f.ends) >= limit || len(f.names)+len(field.Name) > maxNames {
		return false
	}
	f.names = append(f.names, field.Name...)
	f.ends = append(f.ends, len(f.names))
	f.sums = append(f.sums, maphash.String(seed, field.Value))
	return true
}

func (f *fields) name(i int) []byte {
	start := 0
	if i > 0 {
		start = f.ends[i-1]
	}
	return f.names[start:f.ends[i]]
}

// same reports whether field i is name and value already.
func (f *fields) same(i int, name, value string) bool {
	return string(f.name(i)) == name && f.sums[i] == maphash.String(seed, value)
}

// reset forgets the fields, and the memory of a large message.
func (f *fields) reset() {
	if cap(f.names) > 16<<10 || cap(f.ends) > 1<<10 {
		*f = fields{}
		return
	}
	f.names, f.ends, f.sums = f.names[:0], f.ends[:0], f.sums[:0]
}

// ordinals returns, for each field, which one of its name it is, from 1.
func (f *fields) ordinals() []int {
	out := make([]int, f.len())
	seen := make(map[string]int)
	for i := range out {
		n := string(bytes.ToLower(f.name(i)))
		seen[n]++
		out[i] = seen[n]
	}
	return out
}

// step is one change to the header as it is sent.
type step struct {
	kind        int // editInsert, editChange or editDelete
	index       int
	name, value string // value as in policy.Field
}

// atEnd is the index of an insertion after the last field.
const atEnd = -1

// plan turns edits into the steps to send, in order. An MTA makes one change
// after the other, so the plan goes from the last field to the first: no step
// moves what a later one counts. It changes nothing that would stay the same.
//
// An insertion counts all fields, a change those of its name, and Postfix's
// own Received, which is the first, is not shown: field i is the (i+1)th to an
// insertion, and to a change its Received fields count from 1 like any other.
func (f *fields) plan(edits []policy.Edit) (steps []step, bad []policy.Edit) {
	type at struct {
		inserts []policy.Edit
		last    *policy.Edit // of those that replace or delete
	}
	byField := make(map[int]*at)
	changes := false
	for i := range edits {
		e := &edits[i]
		switch e.Kind {
		case policy.InsertField, policy.ReplaceField, policy.DeleteField:
		default:
			continue
		}
		if !e.Fits(f.len()) {
			bad = append(bad, *e)
			continue
		}
		a := byField[e.At]
		if a == nil {
			a = &at{}
			byField[e.At] = a
		}
		if e.Kind == policy.InsertField {
			a.inserts = append(a.inserts, *e)
		} else {
			a.last, changes = e, true
		}
	}
	var ordinals []int
	if changes {
		ordinals = f.ordinals()
	}
	order := make([]int, 0, len(byField))
	for i := range byField {
		order = append(order, i)
	}
	slices.Sort(order)
	for _, i := range slices.Backward(order) {
		a := byField[i]
		if e := a.last; e != nil {
			name := string(f.name(i))
			value := policy.CleanValue(e.Name, e.Value)
			switch {
			case e.Kind == policy.DeleteField:
				steps = append(steps, step{editDelete, ordinals[i], name, ""})
			case f.same(i, e.Name, e.Value):
			case strings.EqualFold(name, e.Name):
				if value == "" {
					value = " " // an empty one would delete it
				}
				steps = append(steps, step{editChange, ordinals[i], e.Name, value})
			default:
				steps = append(steps, step{editDelete, ordinals[i], name, ""}, step{editInsert, i + 1, e.Name, value})
			}
		}
		if i == f.len() {
			for _, e := range a.inserts {
				steps = append(steps, step{editInsert, atEnd, e.Name, policy.CleanValue(e.Name, e.Value)})
			}
			continue
		}
		for _, e := range slices.Backward(a.inserts) {
			steps = append(steps, step{editInsert, i + 1, e.Name, policy.CleanValue(e.Name, e.Value)})
		}
	}
	return steps, bad
}

// apply makes the edits and everything that verdicts do to the message.
func (s *session) apply(m gomilter.Modifier, edits []policy.Edit) error {
	e := &s.msg.effect
	if err := s.applyRecipients(m, edits); err != nil {
		return err
	}
	steps, bad := s.fields.plan(edits)
	for i := range bad {
		s.log.Error("an edit that cannot be made was left out", zap.Stringer("kind", bad[i].Kind), zap.Int("at", bad[i].At),
			zap.String("name", bad[i].Name), zap.Int("fields", s.fields.len()), zap.String("queue_id", s.req.QueueID))
	}
	// The fields on top come last, and the first of them last of all.
	for _, h := range slices.Backward(e.headers) {
		if policy.UsableName(h.Name) {
			steps = append(steps, step{editInsert, 0, h.Name, h.OnTop().Value})
		}
	}
	for i := range steps {
		if err := s.send(m, &steps[i]); err != nil {
			return fmt.Errorf("%s %s: %w", editNames[steps[i].kind], steps[i].name, err)
		}
	}
	for i := range slices.Backward(edits) {
		if edits[i].Kind == policy.ReplaceBody {
			if err := s.replaceBody(m, edits[i].Body); err != nil {
				return fmt.Errorf("%s: %w", edits[i].Kind, err)
			}
			break // each would replace what the one before has put there
		}
	}
	if e.hold != "" {
		s.door.metrics.edits[editQuarantine].Inc()
		if err := m.Quarantine(e.hold); err != nil {
			return fmt.Errorf("quarantine: %w", err)
		}
	}
	return nil
}

// send sends one change to the header.
func (s *session) send(m gomilter.Modifier, e *step) (err error) {
	value := e.value
	if s.steps&gomilter.OptHeaderLeadingSpace == 0 {
		value = strings.TrimPrefix(value, " ") // the MTA puts one there
	}
	s.door.metrics.edits[e.kind].Inc()
	switch {
	case e.kind == editDelete:
		err = m.ChangeHeader(e.index, e.name, "")
	case e.kind == editChange:
		if value == "" {
			value = " "
		}
		err = m.ChangeHeader(e.index, e.name, value)
	case e.index == atEnd:
		err = m.AddHeader(e.name, value)
	default:
		err = m.InsertHeader(e.index, e.name, value)
	}
	return err
}

// replaceBody sends a body in one go, which Postfix insists on.
func (s *session) replaceBody(m gomilter.Modifier, body []byte) error {
	s.door.metrics.edits[editBody].Inc()
	for first := true; first || len(body) > 0; first = false {
		n := min(len(body), int(gomilter.DataSize64K))
		if err := m.ReplaceBodyRawChunk(body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

var errBadAddress = errors.New("not an address")

// applyRecipients adds and replaces recipients. One that replaces all others
// stands alone, as REDIRECT in Postfix's header_checks.
func (s *session) applyRecipients(m gomilter.Modifier, edits []policy.Edit) error {
	only := s.msg.effect.redirect
	var more []string
	for i := range edits {
		switch e := &edits[i]; e.Kind {
		case policy.ReplaceRecipient:
			only = e.Arg
		case policy.AddRecipient:
			if !slices.Contains(more, e.Arg) {
				more = append(more, e.Arg)
			}
		default:
		}
	}
	if only != "" {
		s.msg.effect.redirect = only
		return s.redirect(m, only)
	}
	for _, addr := range more {
		if !mailaddr.Deliverable(addr) {
			return fmt.Errorf("recipient %q: %w", addr, errBadAddress)
		}
		args := ""
		if s.actions&gomilter.OptAddRcptWithArgs != 0 && s.version >= 6 {
			args = "NOTIFY=NEVER"
		}
		if slices.Contains(s.msg.wire, addr) {
			continue
		}
		s.door.metrics.edits[editAddRecipient].Inc()
		if err := m.AddRecipient(addr, args); err != nil {
			return fmt.Errorf("add recipient: %w", err)
		}
	}
	return nil
}

func (s *session) redirect(m gomilter.Modifier, to string) error {
	if !mailaddr.Deliverable(to) {
		return fmt.Errorf("recipient %q: %w", to, errBadAddress)
	}
	there := false
	for _, r := range s.msg.wire {
		if r == to {
			there = true
			continue
		}
		s.door.metrics.edits[editDeleteRecipient].Inc()
		if err := m.DeleteRecipient(r); err != nil {
			return fmt.Errorf("delete recipient: %w", err)
		}
	}
	if there {
		return nil
	}
	s.door.metrics.edits[editAddRecipient].Inc()
	if err := m.AddRecipient(to, ""); err != nil {
		return fmt.Errorf("add recipient: %w", err)
	}
	return nil
}
