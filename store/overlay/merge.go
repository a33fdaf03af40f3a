package overlay

import (
	"fmt"
	"time"

	"postern/greylist"
	"postern/store"
)

// Merge adds what one entry tells: greylist.AdminStore's MergeGreylist.
func (e *Engine) Merge(en *greylist.Entry, r *greylist.Rule, now time.Time) (greylist.Merged, error) {
	if r.Over(en, now) {
		return greylist.Merged{Old: 1}, nil
	}
	c := &greylist.Contact{Match: en.Match, Credit: en.Credit, Sender: en.Sender, Recipient: en.Recipient, Time: now, Rule: *r}
	s := e.begin(c)
	defer scratches.Put(s)
	var changed bool
	var err error
	switch en.Kind {
	case greylist.KindCredit:
		changed, err = e.mergeCredit(en, s, c)
	case greylist.KindTriplet, greylist.KindWaiting:
		changed, err = e.mergePair(en, s, c)
	default:
		err = fmt.Errorf("store: an entry of kind %q", en.Kind)
	}
	if changed {
		return greylist.Merged{Taken: 1}, err
	}
	return greylist.Merged{Known: 1}, err
}

func (e *Engine) mergeCredit(en *greylist.Entry, s *scratch, c *greylist.Contact) (bool, error) {
	sh := e.creditShard(s.csum)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	rec, found, err := e.get(sh, s.csum, s.credit)
	if err != nil {
		return false, err
	}
	cr := rec.credit()
	if !cr.Merge(en, c.Time) {
		return false, nil
	}
	if !found && e.full() {
		return false, e.noRoom()
	}
	e.putCredit(sh, s, c, &cr, rec, found)
	return true, nil
}

func (e *Engine) mergePair(en *greylist.Entry, s *scratch, c *greylist.Contact) (bool, error) {
	sh := e.pairShard(s.pair)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	rec, found, err := e.get(sh, s.tsum, s.triplet)
	if err != nil {
		return false, err
	}
	t := rec.triplet()
	passed := t.Passes > 0 && c.Time.UnixMilli()-t.Last <= c.Rule.Keep.Milliseconds()
	if en.Kind == greylist.KindWaiting {
		w, _ := e.room.find(s.pair)
		if passed || !w.Merge(en, c.Time) {
			return false, nil
		}
		e.room.put(s.pair, &w, c, s.triplet[s.label:])
		return true, nil
	}
	if !passed {
		t = greylist.Triplet{}
	}
	if !t.Merge(en, c.Time) {
		return false, nil
	}
	if !found && e.full() {
		return false, e.noRoom()
	}
	e.putTriplet(sh, s, c, &t, found)
	return true, nil
}

func (e *Engine) noRoom() error { return fmt.Errorf("%w: %d entries", store.ErrFull, e.Entries()) }
