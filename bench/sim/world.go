package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"postern/names"
	"postern/policy"
)

// class is what kind of sender a message is from.
type class uint8

const (
	people     class = iota // whom the site has heard of
	strangers               // first message ever of somebody, at a provider
	strangeOwn              // the same from an own server
	strangeVPS              // the same from a rented server with the hoster's name
	forwarded
	newsletters
	lists
	notices
	codes
	bots
	retryBots
	snowshoe
	stolen
	hacked
	classCount
)

var classNames = [classCount]string{
	"people", "strangers", "strangers-own", "strangers-vps", "forwarded", "newsletters", "lists", "notices", "codes",
	"bots", "retry-bots", "snowshoe", "stolen", "hacked",
}

// firstSpam is the first class that is spam.
const firstSpam = bots

func (c class) spam() bool { return c >= firstSpam }

// host is one address that mail comes from.
type host struct {
	addr    netip.Addr
	name    string // verified; empty: none
	helo    string
	generic bool
	badHelo bool
	minor   bool  // on a DNS list that does not suffice to refuse
	listed  int64 // from when on DNS lists suffice to refuse; Unix milliseconds
}

// notListed is the time at which a host is listed that never is.
const notListed = math.MaxInt64

// system is a mail system: its hosts and how it tries again.
type system struct {
	hosts  []*host
	rotate bool // another host at each attempt
	retry  schedule
	exempt bool // in the list of clients that postgrey ships
}

// host returns where attempt n of a message comes from.
func (s *system) host(seed uint64, n int) *host {
	if len(s.hosts) == 1 {
		return s.hosts[0]
	}
	if !s.rotate {
		n = 0
	}
	return s.hosts[mix(seed, uint64(1000+n))%uint64(len(s.hosts))]
}

// message is one message to one mailbox.
type message struct {
	at     int64 // Unix milliseconds
	class  class
	sys    *system
	from   policy.Address
	to     policy.Address
	spf    policy.SPF
	seed   uint64
	giveUp time.Duration // 0: when its schedule ends
	body   uint64        // same number, same text
	text   float64       // what its text is worth to rspamd
	form   *senderForms
}

// senderForms are a sender as postgrey and sqlgrey compare it, made when first
// asked for.
type senderForms struct{ grey, sql string }

func (m *message) forms() *senderForms {
	if m.form == nil {
		m.form = &senderForms{greySender(m.from), sqlUser(m.from, m.to)}
	}
	return m.form
}

// world is all that is sent.
type world struct {
	begin, end time.Time // of what is counted
	messages   []message // by time; some come before begin
}

// options are what is no assumption about the world.
type options struct {
	seed       uint64
	days, warm int
	allDay     bool // spam that is tried again is tried for a day, as a mail server does
}

// start is a Monday after any real clock, so that the store's own sweeper,
// which looks at that, never drops anything.
var start = time.Date(2100, 1, 4, 0, 0, 0, 0, time.UTC)

// maker makes a world.
type maker struct {
	a     assumptions
	o     options
	judge *names.Judge
	out   []message
	body  uint64
	nets  uint32

	freemail  []*org
	freeShare []float64
	microsoft *system
	google    *system
	relays    []*system
	esps      [][]*system // by the pools that their customers send from
	forwards  []*system
	hosting   []netip.Prefix // where servers are rented
	mailboxes []policy.Address
	serial    int
}

// org is a sending domain.
type org struct {
	domain string
	path   string // return path's domain
	sys    *system
	class  class // of a stranger from there
	spf    string
	style  int // of its return paths
}

func makeWorld(a assumptions, o options, judge *names.Judge) *world {
	m := &maker{a: a, o: o, judge: judge, body: 1 << 40}
	m.systems()
	days := float64(o.days + o.warm)
	perDay := a.Mailboxes * a.PerDay
	mixed := share(a.MixPeople, a.MixNewsletters, a.MixNotices, a.MixCodes, a.MixLists)
	working := 0.0 // working days, as weekends count for less
	for d := range o.days + o.warm {
		working += weight(d)
	}
	total := perDay * working
	m.people(total * mixed[0])
	m.newsletters(total*mixed[1], days)
	m.notices(total*mixed[2], total*mixed[3])
	m.lists(total * mixed[4])
	spam := share(a.SpamBots, a.SpamRetry, a.SpamSnowshoe, a.SpamStolen, a.SpamHacked)
	offered := total * a.Spam
	m.bots(bots, offered*spam[0])
	m.bots(retryBots, offered*spam[1])
	m.snowshoe(offered * spam[2])
	m.stolen(offered * spam[3])
	m.hacked(offered * spam[4])

	w := &world{begin: start.Add(time.Duration(o.warm) * day), end: start.Add(time.Duration(o.warm+o.days) * day)}
	// Messages are large: sort their numbers.
	order := make([]int32, 0, len(m.out))
	for i := range m.out {
		if m.out[i].at < w.end.UnixMilli() {
			order = append(order, int32(i))
		}
	}
	slices.SortFunc(order, func(i, j int32) int { return cmp.Or(cmp.Compare(m.out[i].at, m.out[j].at), cmp.Compare(i, j)) })
	w.messages = make([]message, len(order))
	for i, at := range order {
		w.messages[i] = m.out[at]
	}
	return w
}

func share(weights ...float64) []float64 {
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	out := slices.Clone(weights)
	for i := range out {
		if sum > 0 {
			out[i] /= sum
		}
	}
	return out
}

// weight is how much of a working day's mail comes on day d.
func weight(d int) float64 {
	if d%7 >= 5 {
		return 0.4
	}
	return 1
}

// rng returns the numbers of one purpose: what one assumption changes leaves
// the numbers of others alone.
func (m *maker) rng(purpose string) *rand.Rand {
	h := uint64(14695981039346656037)
	for i := range len(purpose) {
		h = (h ^ uint64(purpose[i])) * 1099511628211
	}
	return rand.New(rand.NewPCG(m.o.seed, h))
}

func (m *maker) span() float64 { return (time.Duration(m.o.days+m.o.warm) * day).Seconds() }

// daytime returns a time at which people and their services write.
func (m *maker) daytime(r *rand.Rand) time.Time {
	for {
		d := r.IntN(m.o.days + m.o.warm)
		if r.Float64() >= weight(d) {
			continue
		}
		hour := 13 + 3.5*r.NormFloat64()
		return start.Add(time.Duration(d)*day + time.Duration(math.Mod(hour+48, 24)*float64(time.Hour)))
	}
}

func (m *maker) anytime(r *rand.Rand) time.Time {
	return start.Add(time.Duration(r.Float64() * m.span() * float64(time.Second)))
}

// zipf draws from n things by their rank.
type zipf []float64

func newZipf(n int, s float64) zipf {
	z := make(zipf, n)
	sum := 0.0
	for i := range z {
		sum += math.Pow(float64(i+1), -s)
		z[i] = sum
	}
	return z
}

func (z zipf) draw(r *rand.Rand) int {
	return min(sort.SearchFloat64s(z, r.Float64()*z[len(z)-1]), len(z)-1)
}

func pick(r *rand.Rand, weights []float64) int {
	x := r.Float64()
	for i, w := range weights {
		if x -= w; x < 0 {
			return i
		}
	}
	return len(weights) - 1
}

// geometric draws a number from 0 with a mean.
func geometric(r *rand.Rand, mean float64) int {
	if mean <= 0 {
		return 0
	}
	return int(math.Log(1-r.Float64()) / math.Log(mean/(1+mean)))
}

func logNormal(r *rand.Rand, median, sigma float64) float64 {
	return median * math.Exp(sigma*r.NormFloat64())
}

// net returns a network /24 that nobody has yet.
func (m *maker) net() netip.Prefix {
	m.nets++
	n := 20<<16 + m.nets*7%(180<<16) // spread: neighbours in number are strangers
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 16), byte(n >> 8), byte(n), 0}), 24)
}

func at(p netip.Prefix, last int) netip.Addr {
	a := p.Addr().As4()
	a[3] = byte(1 + last%254)
	return netip.AddrFrom4(a)
}

func (m *maker) host(addr netip.Addr, name string) *host {
	h := &host{addr: addr, name: name, helo: name, listed: notListed}
	if name == "" {
		h.helo = "mail.invalid.example"
	}
	h.generic = m.judge.Generic(name, addr)
	return h
}

// genericName is what hosters and access networks call an address.
func genericName(a netip.Addr, kind, domain string) string {
	b := a.As4()
	return fmt.Sprintf("%s-%d-%d-%d-%d.%s", kind, b[0], b[1], b[2], b[3], domain)
}

// pool is a system of n networks with each so many hosts.
func (m *maker) pool(n, each int, name string, retry schedule, rotate bool) *system {
	s := &system{retry: retry, rotate: rotate}
	for i := range n {
		p := m.net()
		for j := range each {
			s.hosts = append(s.hosts, m.host(at(p, 10+j), fmt.Sprintf(name, i*each+j)))
		}
	}
	return s
}

// systems makes those that many share.
func (m *maker) systems() {
	r := m.rng("systems")
	for i := range whole(m.a.Mailboxes) {
		m.mailboxes = append(m.mailboxes, address(fmt.Sprintf("user%d", i), "example.net"))
	}
	n := whole(m.a.ProviderNets)
	m.microsoft = m.pool(n, 30, "mail-out%d.outbound.bigsoft.example", outlookQueue, true)
	m.microsoft.exempt = true
	m.google = m.pool(n, 30, "mail-sx%d.gsearch.example", gmailQueue, true)
	m.google.exempt = true
	yahoo := m.pool(8, 20, "sonic%d.consmr.wahoo.example", yahooQueue, false)
	yahoo.exempt = true
	m.freemail = []*org{
		{domain: "gmail.gsearch.example", sys: m.google}, {domain: "outlook.bigsoft.example", sys: m.microsoft}, {domain: "wahoo.example", sys: yahoo},
		{domain: "gmx.example", sys: m.pool(2, 20, "mout%d.gmx.example", gmxQueue, true)},
		{domain: "tonline.example", sys: m.pool(2, 20, "mailout%d.tonline.example", postfixQueue, false)},
		{domain: "freenet.example", sys: m.pool(1, 12, "mout%d.freenet.example", eximQueue, false)},
		{domain: "orange.example", sys: m.pool(2, 20, "smtp%d.smtpout.orange.example", postfixQueue, false)},
	}
	m.freeShare = share(45, 20, 10, 10, 7, 4, 4)
	for _, o := range m.freemail {
		o.path, o.spf, o.class = o.domain, "pass", strangers
	}
	for i := range 10 {
		retry := []schedule{postfixQueue, eximQueue}[i%2]
		s := m.pool(2, 16, fmt.Sprintf("mout%%d.relay.hoster%d.example", i), retry, false)
		s.exempt = i == 3 || i == 6 // OVH and Infomaniak are in postgrey's list
		for _, h := range s.hosts {
			h.minor = r.Float64() < m.a.LegitListed*3 // shared by many
		}
		m.relays = append(m.relays, s)
		for range 20 {
			m.hosting = append(m.hosting, m.net())
		}
	}
	for i := range 12 {
		s := m.pool(whole(m.a.ESPNets), 30, fmt.Sprintf("mta%%d.send.esp%d.example", i), bulkQueue, r.Float64() < m.a.Rotate)
		s.exempt = i == 0 || i == 2 || i == 4 || i == 6 // SES, Mailchimp, Mailgun, Postmark are in postgrey's list
		for _, h := range s.hosts {
			h.minor = r.Float64() < m.a.LegitListed
		}
		var pools []*system
		for hosts := range slices.Chunk(s.hosts, whole(m.a.ESPPool)) {
			part := *s
			part.hosts = hosts
			pools = append(pools, &part)
		}
		m.esps = append(m.esps, pools)
	}
	for i := range 3 {
		m.forwards = append(m.forwards, m.pool(1, 2, fmt.Sprintf("mx%%d.alumni%d.example", i), postfixQueue, false))
	}
}

func address(local, domain string) policy.Address {
	return policy.Address{Raw: local + "@" + domain, Local: local, Domain: domain}
}

// ownServer makes a server for a domain. Retry schedules: what mail servers
// are reachable (E-Soft's survey: Exim 57 %, Postfix 35 %, sendmail 4 %), with
// some of the Exchange servers that such surveys see behind others.
func (m *maker) ownServer(r *rand.Rand, domain string, rented bool) *system {
	p := m.hosting[r.IntN(len(m.hosting))]
	if !rented && r.Float64() < 0.5 {
		p = m.net()
	}
	a := at(p, r.IntN(254))
	name := "mail." + domain
	switch x := r.Float64(); {
	case rented:
		name = genericName(a, "static", fmt.Sprintf("clients.hoster%d.example", r.IntN(10)))
	case x < m.a.NoName:
		name = ""
	case x < m.a.NoName+(1-m.a.NoName)*m.a.Unaligned:
		name = fmt.Sprintf("mx%d.agency%d.example", r.IntN(4), m.next())
	}
	h := m.host(a, name)
	h.badHelo, h.minor = r.Float64() < m.a.BadHelo, r.Float64() < m.a.LegitListed
	retries := []schedule{eximQueue, postfixQueue, sendmailQueue, exchangeQueue, qmailQueue}
	return &system{hosts: []*host{h}, retry: retries[pick(r, share(50, 36, 4, 8, 2))]}
}

func (m *maker) next() int { m.serial++; return m.serial }

// ownDomain makes a domain of people.
func (m *maker) ownDomain(r *rand.Rand) *org {
	o := &org{domain: fmt.Sprintf("firm%d.example", m.next()), class: strangers}
	o.path = o.domain
	published := r.Float64() < m.a.SPFOwn
	switch pick(r, share(m.a.FromMicrosoft, m.a.FromGoogle, m.a.FromHoster, m.a.FromOwn, m.a.FromRented)) {
	case 0:
		o.sys, published = m.microsoft, r.Float64() < 0.95
	case 1:
		o.sys, published = m.google, r.Float64() < 0.95
	case 2:
		o.sys = m.relays[newZipf(len(m.relays), 1).draw(r)]
	case 3:
		o.sys, o.class = m.ownServer(r, o.domain, false), strangeOwn
	case 4:
		o.sys, o.class = m.ownServer(r, o.domain, true), strangeVPS
	}
	o.spf = "none"
	if published {
		o.spf = "pass"
	}
	return o
}

// send adds a message.
func (m *maker) send(r *rand.Rand, at time.Time, c class, o *org, local string, to policy.Address) *message {
	m.body++
	m.out = append(m.out, message{
		at: at.UnixMilli(), class: c, sys: o.sys, from: address(local, o.path), to: to, seed: r.Uint64(), body: m.body,
		spf: policy.SPF{Result: o.spf, Domain: o.path, Identity: "mailfrom"},
	})
	x := &m.out[len(m.out)-1]
	// An exponential tail from -2 points on, of which so much is above 4.
	above := m.a.HamSuspicious
	if c.spam() {
		above = m.a.SpamSuspicious
	}
	x.text = -2 + (rspamdPoints+2)*math.Log(unit(mix(x.seed, 5)))/math.Log(min(max(above, 1e-9), 1-1e-9))
	return x
}

func (m *maker) mailbox(n uint64) policy.Address {
	return m.mailboxes[n%uint64(len(m.mailboxes))]
}

// people makes the mail of people: of pairs that have written before, of new
// pairs, of domains never seen, each with what they write later.
func (m *maker) people(total float64) {
	r := m.rng("people")
	from := share(m.a.FromFreemail, m.a.FromMicrosoft+m.a.FromGoogle+m.a.FromHoster+m.a.FromOwn+m.a.FromRented, m.a.FromForward)
	persons := newZipf(20*whole(m.a.Mailboxes), m.a.Zipf)
	known := make([]*org, whole(m.a.Domains))
	for i := range known {
		known[i] = m.ownDomain(r)
	}
	domains := newZipf(len(known), m.a.Zipf)
	colleagues := newZipf(8, 1)
	later := func(t time.Time, c class, o *org, local string, to policy.Address) {
		for range geometric(r, m.a.FollowUps) {
			t = t.Add(time.Duration(r.ExpFloat64() * 1.5 * float64(day)))
			if r.Float64() < 0.3 {
				local = fmt.Sprintf("colleague%d", r.IntN(5))
			}
			m.send(r, t, c, o, local, to)
		}
	}
	draws := func(total, p float64) (n int, first float64) {
		p = min(p, 0.9/(1+m.a.FollowUps))
		d := total * (1 - p*m.a.FollowUps)
		return int(d), p * total / d
	}

	n, first := draws(total*from[0], m.a.NewPair)
	for range n {
		if t := m.daytime(r); r.Float64() < first {
			o, local, to := m.freemail[pick(r, m.freeShare)], fmt.Sprintf("new.person%d", m.next()), m.mailbox(r.Uint64())
			m.send(r, t, strangers, o, local, to)
			later(t, people, o, local, to)
		} else {
			i := uint64(persons.draw(r))
			o := m.freemail[pick(rand.New(rand.NewPCG(i, 1)), m.freeShare)]
			m.send(r, t, people, o, fmt.Sprintf("person.name%d", i), m.mailbox(mix(i, uint64(r.IntN(2)))))
		}
	}

	n, first = draws(total*from[1], m.a.NewDomain+m.a.NewPair)
	isDomain := m.a.NewDomain / max(m.a.NewDomain+m.a.NewPair, 1e-9)
	for range n {
		t := m.daytime(r)
		switch x := r.Float64(); {
		case x < first*isDomain:
			o, to := m.ownDomain(r), m.mailbox(r.Uint64())
			m.send(r, t, o.class, o, "first.last", to)
			later(t, people, o, "first.last", to)
		case x < first:
			o, local, to := known[domains.draw(r)], fmt.Sprintf("new%d", m.next()), m.mailbox(r.Uint64())
			m.send(r, t, people, o, local, to)
			later(t, people, o, local, to)
		default:
			i := domains.draw(r)
			j := uint64(colleagues.draw(r))
			m.send(r, t, people, known[i], fmt.Sprintf("staff%d", j), m.mailbox(mix(uint64(i)<<8|j, uint64(r.IntN(2)))))
		}
	}

	n, first = draws(total*from[2], m.a.NewPair)
	results := []string{"softfail", "fail", "none"}
	for range n {
		i := uint64(persons.draw(r))
		if r.Float64() < first {
			i = uint64(1e6) + uint64(m.next())
		}
		o := &org{
			path: fmt.Sprintf("firm%d.example", 1e6+i), sys: m.forwards[i%uint64(len(m.forwards))],
			spf: results[pick(rand.New(rand.NewPCG(i, 2)), share(5, 2, 3))],
		}
		m.send(r, m.daytime(r), forwarded, o, "first.last", m.mailbox(i))
	}
}

// service makes a domain that sends newsletters, notices or codes.
func (m *maker) service(r *rand.Rand) *org {
	o := &org{domain: fmt.Sprintf("shop%d.example", m.next()), spf: "pass"}
	if r.Float64() < m.a.VERP {
		o.style = 1 + r.IntN(styles)
	}
	if r.Float64() < m.a.ViaESP {
		i := newZipf(len(m.esps), 1).draw(r)
		o.sys = m.esps[i][r.IntN(len(m.esps[i]))]
		if o.path = fmt.Sprintf("bounces.esp%d.example", i); r.Float64() < m.a.ESPAligned {
			o.path = "em." + o.domain
		}
		return o
	}
	o.path = o.domain
	if o.sys = m.ownServer(r, o.domain, r.Float64() < 0.1); r.Float64() < m.a.NoRetry/max(1-m.a.ViaESP, 0.01) {
		o.sys.retry = never
	}
	if r.Float64() > m.a.SPFOwn {
		o.spf = "none"
	}
	return o
}

// styles is how many ways there are to write a return path of its own.
const styles = 6

// path returns the local part of one message's return path: as SendGrid, SES,
// Mandrill, SparkPost, ezmlm and who writes a bare token do.
func (o *org) local(r *rand.Rand, to policy.Address) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	token := func(n int, from string) string {
		var b strings.Builder
		for range n {
			b.WriteByte(from[r.IntN(len(from))])
		}
		return b.String()
	}
	const hex = "0123456789abcdef"
	switch o.style {
	case 1:
		return fmt.Sprintf("bounces+%d-%s-%s=%s", 1000000+int(o.domain[4])*977, token(4, hex), to.Local, to.Domain)
	case 2:
		return fmt.Sprintf("0102018%s-%s-%s-4%s-a%s-%s-000000", token(9, hex), token(8, hex), token(4, hex), token(3, hex), token(3, hex), token(12, hex))
	case 3:
		return fmt.Sprintf("bounce-md_%d.%s.v1-%s", 30000000+int(o.domain[4]), token(8, hex), token(32, hex))
	case 4:
		return fmt.Sprintf("msprvs1=%d%s=bounces-%d-%d", 19800+r.IntN(90), token(10, letters), 200000+int(o.domain[4]), r.IntN(1000))
	case 5:
		return fmt.Sprintf("news-return-%d-%s=%s", r.IntN(100000), to.Local, to.Domain)
	case 6:
		return "b-" + token(24, letters)
	}
	return "noreply"
}

// newsletters makes them, each to all its readers within minutes.
func (m *maker) newsletters(total, days float64) {
	r := m.rng("newsletters")
	periods, often := []float64{1, 7, 30}, share(2, 6, 2)
	perDay := 0.0
	for i, p := range periods {
		perDay += often[i] / p
	}
	readers := max(m.a.Subscribers, 1)
	count := total / days / perDay / readers
	issue := func(o *org, t time.Time, boxes []policy.Address) {
		for _, to := range boxes {
			m.send(r, t.Add(time.Duration(r.Float64()*float64(10*time.Minute))), newsletters, o, o.local(r, to), to)
		}
	}
	// New ones replace others, so that the number stays.
	born := m.a.NewList * total / readers
	for i := range int(count + born) {
		o := m.service(r)
		period := periods[pick(r, often)]
		boxes := make([]policy.Address, 1+geometric(r, readers-1))
		for i := range boxes {
			boxes[i] = m.mailbox(r.Uint64())
		}
		hour := 6 + r.Float64()*10
		first := r.Float64() * period
		last := days
		if born > 0 {
			last = r.ExpFloat64() * days * count / born
		}
		if float64(i) >= count {
			first = r.Float64() * days
			last += first
		}
		for d := first; d < min(days, last); d += period {
			issue(o, start.Add(time.Duration(math.Floor(d))*day+time.Duration(hour*float64(time.Hour))), boxes)
		}
	}
}

// notices makes what services send to one user at a time, and their codes.
func (m *maker) notices(total, codeTotal float64) {
	r := m.rng("notices")
	known := make([]*org, whole(m.a.Services))
	for i := range known {
		known[i] = m.service(r)
	}
	rank := newZipf(len(known), m.a.Zipf)
	user := func(i int) policy.Address {
		users := 1 + whole(m.a.Mailboxes)/(1+i/4)
		return m.mailbox(mix(uint64(i), uint64(r.IntN(users))))
	}
	p := min(m.a.NewService, 0.9/(1+m.a.FollowUps))
	draws := total * (1 - p*m.a.FollowUps)
	for range int(draws) {
		t := m.daytime(r)
		if r.Float64() < p*total/draws {
			o, to := m.service(r), m.mailbox(r.Uint64())
			m.send(r, t, notices, o, o.local(r, to), to)
			for range geometric(r, m.a.FollowUps) {
				t = t.Add(time.Duration(r.ExpFloat64() * 1.5 * float64(day)))
				m.send(r, t, notices, o, o.local(r, to), to)
			}
			continue
		}
		i := rank.draw(r)
		to := user(i)
		m.send(r, t, notices, known[i], known[i].local(r, to), to)
	}
	r = m.rng("codes")
	for range int(codeTotal) {
		i := rank.draw(r)
		o := known[i]
		if r.Float64() < m.a.NewCode {
			o = m.service(r)
		}
		to := user(i)
		m.send(r, m.daytime(r), codes, o, o.local(r, to), to)
	}
}

// lists makes discussion lists.
func (m *maker) lists(total float64) {
	r := m.rng("lists")
	const count, readers = 15, 5
	for range count {
		o := &org{domain: fmt.Sprintf("list%d.example", m.next()), style: 5 * r.IntN(2)}
		o.path, o.spf = o.domain, "none"
		if r.Float64() < m.a.SPFOwn {
			o.spf = "pass"
		}
		o.sys = m.ownServer(r, o.domain, false)
		first := r.Uint64()
		for range int(total / count / readers) {
			t := m.daytime(r)
			for j := range readers {
				to := m.mailbox(mix(first, uint64(j)))
				m.send(r, t.Add(time.Duration(j)*time.Second), lists, o, o.local(r, to), to)
			}
		}
	}
}

// listing draws when a source is listed that came to us at t.
func (m *maker) listing(r *rand.Rand, t time.Time, always, median, ever float64) int64 {
	before, lag := r.ExpFloat64()*m.a.HeadStart, logNormal(r, median, 1.5)
	switch a, e := r.Float64(), r.Float64(); {
	case a < always:
		return 0
	case e < ever:
		return t.Add(minutes(lag - before)).UnixMilli()
	}
	return notListed
}

// bots makes what infected machines send.
func (m *maker) bots(c class, total float64) {
	r := m.rng(classNames[c])
	results := []string{"pass", "fail", "softfail", "neutral", "none"}
	each := max(m.a.BotMails, 1)
	for range int(total / each) {
		t := m.anytime(r)
		addr := at(m.net(), r.IntN(254))
		name := genericName(addr, "dsl", fmt.Sprintf("dyn.isp%d.example", r.IntN(500)))
		if r.Float64() < m.a.BotNamed {
			name = fmt.Sprintf("gw.office%d.example", m.next())
		} else if r.Float64() < m.a.BotNoName {
			name = ""
		}
		h := m.host(addr, name)
		h.badHelo, h.minor = r.Float64() < m.a.BotBadHelo, r.Float64() < m.a.MinorListed
		h.listed = m.listing(r, t, m.a.BotListed, m.a.BotLag, m.a.BotEver)
		sys := &system{hosts: []*host{h}}
		if c == retryBots {
			sys.retry = botQueue
			if m.o.allDay {
				sys.retry = postfixQueue
			}
		}
		campaign := uint64(t.Sub(start) / (3 * time.Hour))
		for range 1 + geometric(r, each-1) {
			o := &org{path: fmt.Sprintf("forged%d.example", r.IntN(5000)), sys: sys, spf: results[pick(r, []float64{m.a.BotSPF, (1 - m.a.BotSPF) * 0.25, (1 - m.a.BotSPF) * 0.35, (1 - m.a.BotSPF) * 0.05, 1})]}
			x := m.send(r, t, c, o, fmt.Sprintf("name%d", r.IntN(10000)), m.mailbox(r.Uint64()))
			x.giveUp = m.patience(r, m.a.BotPatience)
			if unit(mix(campaign, 9)) < m.a.SameBody {
				x.body = campaign
			}
			t = t.Add(time.Duration(r.ExpFloat64() * float64(10*time.Minute)))
		}
	}
}

// patience draws for how long spam is tried again.
func (m *maker) patience(r *rand.Rand, mean float64) time.Duration {
	d := max(time.Second, minutes(r.ExpFloat64()*mean))
	if m.o.allDay {
		return day
	}
	return d
}

// snowshoe makes what comes from rented networks that are all in order.
func (m *maker) snowshoe(total float64) {
	r := m.rng("snowshoe")
	each := max(m.a.SnowMails, 1)
	for range int(total / each) {
		t := m.anytime(r)
		p := m.net()
		listed := m.listing(r, t, m.a.SnowListed, m.a.SnowLag, m.a.SnowEver)
		minor := r.Float64() < m.a.MinorListed
		sys := &system{}
		if r.Float64() < m.a.SnowRetry {
			sys.retry = bulkQueue
			if m.o.allDay {
				sys.retry = postfixQueue
			}
		}
		domains := make([]*org, 4)
		for i := range domains {
			domains[i] = &org{path: fmt.Sprintf("offer%d.example", m.next()), sys: sys, spf: "pass"}
		}
		for i := range 30 {
			h := m.host(at(p, i*8), fmt.Sprintf("mail%d.%s", i, domains[i%4].path))
			h.listed, h.minor = listed, minor
			sys.hosts = append(sys.hosts, h)
		}
		life := r.ExpFloat64() * m.a.SnowLife * float64(time.Hour)
		for range 1 + geometric(r, each-1) {
			later := t.Add(time.Duration(r.Float64() * life))
			x := m.send(r, later, snowshoe, domains[r.IntN(4)], fmt.Sprintf("info%d", r.IntN(50)), m.mailbox(r.Uint64()))
			x.giveUp = m.patience(r, m.a.SnowPatience)
		}
	}
}

// stolen makes what comes from stolen accounts.
func (m *maker) stolen(total float64) {
	r := m.rng("stolen")
	each := max(m.a.StolenMails, 1)
	for range int(total / each) {
		t := m.anytime(r)
		o := m.freemail[pick(r, m.freeShare)]
		if r.Float64() < 0.5 {
			o = &org{path: fmt.Sprintf("firm%d.example", m.next()), sys: []*system{m.microsoft, m.google}[r.IntN(2)], spf: "pass"}
		}
		local := fmt.Sprintf("victim%d", m.next())
		for range 1 + geometric(r, each-1) {
			m.send(r, t, stolen, o, local, m.mailbox(r.Uint64()))
			t = t.Add(time.Duration(r.ExpFloat64() * float64(10*time.Minute)))
		}
	}
}

// hacked makes what hacked web sites send: through the hoster's relays, or
// from the server itself.
func (m *maker) hacked(total float64) {
	r := m.rng("hacked")
	each := max(m.a.StolenMails, 1)
	for range int(total / each) {
		t := m.anytime(r)
		o := &org{path: fmt.Sprintf("site%d.example", m.next()), spf: "none"}
		if r.Float64() < 0.5 {
			o.sys = m.relays[newZipf(len(m.relays), 1).draw(r)]
		} else {
			o.sys = m.ownServer(r, o.path, r.Float64() < 0.5)
			h := o.sys.hosts[0]
			h.minor, h.listed = h.minor || r.Float64() < m.a.MinorListed, m.listing(r, t, 0, m.a.HackedLag, m.a.HackedEver)
		}
		if r.Float64() < m.a.SPFOwn {
			o.spf = "pass"
		}
		for range 1 + geometric(r, each-1) {
			m.send(r, t, hacked, o, "www-data", m.mailbox(r.Uint64()))
			t = t.Add(time.Duration(r.ExpFloat64() * float64(10*time.Minute)))
		}
	}
}
