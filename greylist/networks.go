package greylist

import (
	"context"
	"hash/maphash"
	"math"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"postern/policy"
)

// Networks keep on which day somebody with credit last came from a network, by
// its name. A swap puts next in the place of old if that is what is there; an
// empty text stands for nothing. Both return by ctx's deadline.
type Networks interface {
	Load(ctx context.Context, network string) (string, error)
	Swap(ctx context.Context, network, old, next string, expires time.Time) (bool, error)
}

// networks are what this process knows of the networks that clients come from:
// which correspondences were tried from there of late, and whether somebody
// there has credit. Their number is fixed, and what belongs to one, too. They
// are safe for concurrent use.
type networks struct {
	seed  maphash.Seed
	parts [networkParts]networkPart
}

const (
	networkParts  = 64
	networkGroups = 64  // of a part, for those without credit: 16,384
	creditGroups  = 256 // of a part, for those with: 65,536
	networkWays   = 4
	// maxBurst is the most that burst can be.
	maxBurst = 15
)

// networkPart has its tables once it is used.
type networkPart struct {
	mu      sync.Mutex
	tried   [][networkWays]tried
	credits [][networkWays]creditDay
}

// tried is a network, and the correspondences last tried from there.
type tried struct {
	key   uint64
	asked uint32 // when the store knew of nobody with credit there; Unix seconds
	pairs [maxBurst + 1]pair
}

type pair struct {
	sum uint32
	at  uint32 // Unix seconds; 0: none
}

// creditDay is a network, and the day (since 1970) on which somebody with
// credit last came from there.
type creditDay struct {
	key uint64
	day uint32
}

func newNetworks() *networks { return &networks{seed: maphash.MakeSeed()} }

// key returns the hash of a network.
func (n *networks) key(p netip.Prefix) uint64 { return maphash.Comparable(n.seed, p) }

// sum returns the hash of a correspondence.
func (n *networks) sum(domain, recipient string) uint32 {
	return uint32(maphash.String(n.seed, domain)*31 + maphash.String(n.seed, recipient))
}

// locked returns the part of a network, locked.
func (n *networks) locked(key uint64) *networkPart {
	p := &n.parts[key%networkParts]
	p.mu.Lock()
	return p
}

// note remembers a correspondence tried at a time, and reports whether more
// than most different ones were tried within a time. With peek nothing is
// remembered.
func (n *networks) note(key uint64, sum uint32, at time.Time, within time.Duration, most int, peek bool) bool {
	now, since := seconds(at), seconds(at.Add(-within))
	p := n.locked(key)
	defer p.mu.Unlock()
	var t *tried
	if p.tried == nil {
		if peek {
			return 1 > most
		}
		p.tried = make([][networkWays]tried, networkGroups)
	}
	if t = placeOf(&p.tried[key>>32%networkGroups], key, now, since); t.key != key {
		if peek {
			return 1 > most
		}
		*t = tried{key: key}
	}
	count, mine, oldest := 0, -1, 0
	for i := range t.pairs {
		x := &t.pairs[i]
		x.at = min(x.at, now) // the clock stepped back
		switch {
		case x.at != 0 && x.sum == sum:
			mine = i
		case x.at != 0 && x.at >= since:
			count++
		}
		if x.at < t.pairs[oldest].at {
			oldest = i
		}
	}
	if !peek {
		if mine < 0 {
			mine = oldest
		}
		t.pairs[mine] = pair{sum, now}
	}
	return count+1 > most
}

// placeOf returns where a network stands, else where it should: in the place
// of the one that has tried least, of these of the one that tried longest ago.
// A flood from networks that try little does not push out one that tries much.
func placeOf(g *[networkWays]tried, key uint64, now, since uint32) *tried {
	least, fewest, latest := &g[0], math.MaxInt, uint32(0)
	for i := range g {
		t := &g[i]
		if t.key == key {
			return t
		}
		count, last := 0, uint32(0)
		for _, x := range t.pairs {
			if x.at != 0 && x.at >= since {
				count++
				last = max(last, min(x.at, now))
			}
		}
		if count < fewest || count == fewest && last < latest {
			least, fewest, latest = t, count, last
		}
	}
	return least
}

// drop forgets a correspondence: it turned out to be known.
func (n *networks) drop(key uint64, sum uint32) {
	p := n.locked(key)
	defer p.mu.Unlock()
	if t := p.find(key); t != nil {
		for i := range t.pairs {
			if t.pairs[i].sum == sum {
				t.pairs[i] = pair{}
			}
		}
	}
}

func (p *networkPart) find(key uint64) *tried {
	if p.tried == nil {
		return nil
	}
	g := &p.tried[key>>32%networkGroups]
	for i := range g {
		if g[i].key == key {
			return &g[i]
		}
	}
	return nil
}

// credit returns the day on which somebody with credit last came from a
// network, 0 when that is not known here.
func (n *networks) credit(key uint64) uint32 {
	p := n.locked(key)
	defer p.mu.Unlock()
	if p.credits != nil {
		for _, c := range p.credits[key>>32%creditGroups] {
			if c.key == key {
				return c.day
			}
		}
	}
	return 0
}

// setCredit remembers that day. Where there is no place the one that has not
// been seen for longest goes.
func (n *networks) setCredit(key uint64, day uint32) {
	p := n.locked(key)
	defer p.mu.Unlock()
	if p.credits == nil {
		p.credits = make([][networkWays]creditDay, creditGroups)
	}
	g := &p.credits[key>>32%creditGroups]
	place := &g[0]
	for i := range g {
		if g[i].key == key {
			place = &g[i]
			break
		}
		if g[i].day < place.day {
			place = &g[i]
		}
	}
	*place = creditDay{key, day}
}

// askEvery is how often the store is asked again about a network in which it
// knew of nobody with credit.
const askEvery = time.Hour

// asked reports whether the store was asked lately, in vain.
func (n *networks) asked(key uint64, at time.Time) bool {
	p := n.locked(key)
	defer p.mu.Unlock()
	t := p.find(key)
	now := seconds(at)
	return t != nil && t.asked != 0 && t.asked <= now && now-t.asked < uint32(askEvery/time.Second)
}

func (n *networks) setAsked(key uint64, at time.Time) {
	p := n.locked(key)
	defer p.mu.Unlock()
	if t := p.find(key); t != nil {
		t.asked = seconds(at)
	}
}

// seconds is a time as it is kept here: Unix seconds, at least 1.
func seconds(t time.Time) uint32 { return uint32(min(max(t.Unix(), 1), math.MaxUint32)) }

const day = 24 * time.Hour

// dayOf is the number of a day since 1970, at least 1.
func dayOf(t time.Time) uint32 { return seconds(t)/uint32(day/time.Second) + 1 }

// networkPrefix returns the network that a client belongs to.
func (c *Check) networkPrefix(addr netip.Addr) netip.Prefix {
	bits := c.cfg.IPv4Prefix
	if addr.Is6() {
		bits = c.cfg.IPv6Prefix
	}
	p, _ := addr.Prefix(bits) // a valid address has that many
	return p
}

// burst notes the correspondence of a request, and adds what its network makes
// of its grade: too many correspondences, or a forwarder's failed SPF.
func (c *Check) burst(ctx context.Context, req *policy.Request, g *grade) {
	p := c.networkPrefix(req.Client.Addr)
	key := c.networks.key(p)
	crowd := false // without known_after nobody could ever have credit
	if c.cfg.Burst > 0 && c.rule.KnownAfter > 0 && req.Facts.Provider == "" {
		crowd = c.networks.note(key, c.pairOf(req), req.Time, c.cfg.BurstWithin.D(), c.cfg.Burst, req.DryRun)
	}
	onlySPF := g.kinds == 1<<kindSPF
	if !crowd && !onlySPF {
		return
	}
	credit := c.hasCredit(ctx, p, key, req)
	switch {
	case credit && onlySPF:
		g.class, g.forwarded = classNone, true
	case !credit && crowd:
		g.class, g.burst = classLong, true
	}
}

func (c *Check) pairOf(req *policy.Request) uint32 {
	return c.networks.sum(req.Sender.Domain, recipient(req.Recipient))
}

// hasCredit reports whether somebody with credit has come from a network
// lately. What cannot be asked speaks for it.
func (c *Check) hasCredit(ctx context.Context, p netip.Prefix, key uint64, req *policy.Request) bool {
	today := dayOf(req.Time)
	if c.lately(c.networks.credit(key), today) {
		return true
	}
	if c.saved == nil || c.networks.asked(key, req.Time) {
		return false
	}
	text, err := c.saved.Load(ctx, p.String())
	if err != nil {
		c.log.Debug("whether a network has credit is not known", zap.Stringer("network", p), zap.Error(err))
		return true
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil && c.lately(uint32(n), today) {
		if !req.DryRun {
			c.networks.setCredit(key, uint32(n))
		}
		return true
	}
	if !req.DryRun {
		c.networks.setAsked(key, req.Time)
	}
	return false
}

// lately reports whether a day is not longer ago than credit is kept.
func (c *Check) lately(then, today uint32) bool {
	return then != 0 && int64(today)-int64(then) <= int64(c.cfg.Keep.D()/day)
}

// settle takes over what the store knew of a contact: a correspondence that is
// known is none of a burst, and a client with credit speaks for its network.
// That is stored once a day.
func (c *Check) settle(ctx context.Context, req *policy.Request, out *Outcome) {
	state := out.State
	if state != KnownTriplet && state != KnownClient {
		return
	}
	p := c.networkPrefix(req.Client.Addr)
	key := c.networks.key(p)
	c.networks.drop(key, c.pairOf(req))
	if state != KnownClient && req.Time.Sub(out.First) < c.rule.KnownAge {
		return
	}
	today, old := dayOf(req.Time), c.networks.credit(key)
	if old >= today {
		return
	}
	c.networks.setCredit(key, today)
	if c.saved == nil {
		return
	}
	before, now := "", strconv.FormatUint(uint64(today), 10)
	if old != 0 {
		before = strconv.FormatUint(uint64(old), 10)
	}
	expires := req.Time.Add(c.cfg.Keep.D() + day)
	swapped, err := c.saved.Swap(ctx, p.String(), before, now, expires)
	if err == nil && !swapped {
		if before, err = c.saved.Load(ctx, p.String()); err == nil && before != now {
			_, err = c.saved.Swap(ctx, p.String(), before, now, expires) // else another gateway has just done it
		}
	}
	if err != nil {
		c.log.Debug("that a network has credit could not be stored", zap.Stringer("network", p), zap.Error(err))
	}
}
