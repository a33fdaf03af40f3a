package main

import (
	"flag"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"
)

// assumptions are what the world is made of. The tags name the flag and say
// where the default comes from; "guess" is one. Shares are of 1; weights of one
// group (the same word before the dash) are divided by their sum.
type assumptions struct {
	// The site.
	Mailboxes float64 `flag:"mailboxes" why:"a small company"`
	PerDay    float64 `flag:"legit-per-day" why:"legitimate messages a mailbox gets on a working day; guess"`
	Spam      float64 `flag:"spam-per-legit" why:"spam offered for each legitimate message; Kaspersky: 45 to 47 % of all mail, 2021 to 2025"`

	// What legitimate mail is. Hostinger, January 2026, of accepted mail: personal
	// providers 20 %, low-volume senders 10 %, newsletters 16 %, the rest business
	// tools, social networks, shops, banks, travel.
	MixPeople      float64 `flag:"mix-people" why:"people; Hostinger 2026: 20 % personal providers and 10 % low-volume senders"`
	MixNewsletters float64 `flag:"mix-newsletters" why:"newsletters; Hostinger 2026: 16 %"`
	MixNotices     float64 `flag:"mix-notices" why:"notices of services; Hostinger 2026: 54 %"`
	MixCodes       float64 `flag:"mix-codes" why:"confirmation codes; guess"`
	MixLists       float64 `flag:"mix-lists" why:"discussion lists; guess"`

	// Where people's mail comes from.
	FromFreemail  float64 `flag:"from-freemail" why:"people at personal providers; Hostinger 2026: two of three, fewer for a company"`
	FromMicrosoft float64 `flag:"from-microsoft" why:"own domain at Microsoft; Liu et al., IMC 2021: 10.8 % of popular domains, more of companies'"`
	FromGoogle    float64 `flag:"from-google" why:"own domain at Google; Liu et al., IMC 2021: 28.5 % of popular domains"`
	FromHoster    float64 `flag:"from-hoster" why:"own domain, mail through the hoster's relays; Liu et al.: GoDaddy alone 29 % of random .com"`
	FromOwn       float64 `flag:"from-own" why:"own server with a name of its own; guess"`
	FromRented    float64 `flag:"from-rented" why:"rented server that still has the hoster's name; guess"`
	FromForward   float64 `flag:"from-forwarder" why:"through a forwarder that does not rewrite the sender; guess"`

	// How much of it is new.
	Domains     float64 `flag:"people-domains" why:"own domains that write to the site at all, by a Zipf law; guess"`
	NewDomain   float64 `flag:"new-domain" max:"1" why:"share of mail from own domains that is the first ever of its domain; guess"`
	NewPair     float64 `flag:"new-pair" max:"1" why:"share of people's mail that is the first of its sender to its recipient; guess"`
	NewList     float64 `flag:"new-newsletter" max:"1" why:"share of newsletters whose sender is new; guess"`
	Services    float64 `flag:"services" why:"services that send notices, by a Zipf law; guess"`
	NewService  float64 `flag:"new-service" max:"1" why:"share of notices whose service is new; guess"`
	NewCode     float64 `flag:"new-code" max:"1" why:"share of codes that come from a service never seen before: one registers there; guess"`
	Zipf        float64 `flag:"zipf" why:"exponent of the Zipf laws; Gomes et al. 2007 find 0.8 to 1.1 for senders"`
	FollowUps   float64 `flag:"follow-ups" why:"further messages of somebody new in the next days, mean; guess"`
	Subscribers float64 `flag:"subscribers" why:"mailboxes that one newsletter goes to, mean; guess"`

	// How it is sent.
	ViaESP       float64 `flag:"via-esp" max:"1" why:"newsletters and notices sent by a mailing provider; guess"`
	ESPAligned   float64 `flag:"esp-own-path" max:"1" why:"of these, with a return path in the customer's domain; guess"`
	ESPNets      float64 `flag:"esp-nets" why:"networks (/24) of one mailing provider; their SPF records: tens to hundreds"`
	ESPPool      float64 `flag:"esp-pool" why:"addresses of it that one customer's mail comes from; guess"`
	ProviderNets float64 `flag:"provider-nets" why:"networks (/24) that Google or Microsoft send to one site from; their SPF records name thousands"`
	VERP         float64 `flag:"verp" max:"1" why:"newsletters and notices with a return path of their own for each message; guess"`
	Rotate       float64 `flag:"rotate" max:"1" why:"retries of mailing providers that come from another address; Pagani et al., DSN 2016: 4 of 10 webmail providers"`
	SPFOwn       float64 `flag:"spf-own" max:"1" why:"own and hosters' servers' domains with SPF; Czybik et al., IMC 2023: 56.5 % of all domains, more of those that send"`
	NoName       float64 `flag:"legit-no-name" max:"1" why:"own servers without a verified name; guess"`
	BadHelo      float64 `flag:"legit-bad-helo" max:"1" why:"own servers with a bad HELO; guess"`
	Unaligned    float64 `flag:"unaligned" max:"1" why:"own servers named in another domain than the sender's; guess"`
	LegitListed  float64 `flag:"legit-listed" max:"1" why:"legitimate servers on a DNS list that does not suffice to refuse; guess"`
	NoRetry      float64 `flag:"legit-no-retry" max:"1" why:"services with own servers that never try again; guess"`

	// What spam is.
	SpamBots     float64 `flag:"spam-bots" why:"bots that try once; MessageLabs 2009: 83 % of spam from bots, Symantec 2013: 76 %"`
	SpamRetry    float64 `flag:"spam-retry-bots" why:"bots that try again; Pagani et al.: Kelihos 36 % beside Cutwail's 47 %, since taken down"`
	SpamSnowshoe float64 `flag:"spam-snowshoe" why:"rented networks with own domains, SPF and names; guess"`
	SpamStolen   float64 `flag:"spam-stolen" why:"stolen accounts at providers; guess"`
	SpamHacked   float64 `flag:"spam-hacked" why:"hacked web sites, through hosters' relays and rented servers; guess"`

	BotListed      float64 `flag:"bot-listed" max:"1" why:"bots that a DNS list has from the start (dial-up networks, known bots); Spamhaus: its lists refuse 85 % of all mail"`
	BotLag         float64 `flag:"bot-lag" why:"minutes until another bot is listed after its first spam anywhere, median; guess"`
	BotEver        float64 `flag:"bot-listed-ever" max:"1" why:"of these, ever listed; guess"`
	SnowListed     float64 `flag:"snowshoe-listed" max:"1" why:"snowshoe networks that are listed from the start; guess"`
	SnowLag        float64 `flag:"snowshoe-lag" why:"minutes until another one is listed, median; guess"`
	SnowEver       float64 `flag:"snowshoe-listed-ever" max:"1" why:"of these, ever listed; guess"`
	HackedLag      float64 `flag:"hacked-lag" why:"minutes until a hacked server is listed, median; guess"`
	HackedEver     float64 `flag:"hacked-listed-ever" max:"1" why:"hacked servers and relays ever listed; guess"`
	MinorListed    float64 `flag:"spam-minor-listed" max:"1" why:"spam sources on a DNS list that does not suffice to refuse; guess"`
	HeadStart      float64 `flag:"head-start" why:"minutes for which a source has spammed elsewhere before it comes to us, mean; guess"`
	BotPatience    float64 `flag:"bot-patience" why:"minutes for which a retrying bot goes on, mean; Pagani et al.: Kelihos came back after 5 to 10 minutes, and later"`
	SnowRetry      float64 `flag:"snowshoe-retry" max:"1" why:"snowshoe senders that try again; guess"`
	SnowPatience   float64 `flag:"snowshoe-patience" why:"minutes for which they go on, mean; guess"`
	BotMails       float64 `flag:"bot-mails" why:"messages of one bot to the site, mean; guess"`
	SnowMails      float64 `flag:"snowshoe-mails" why:"messages of one snowshoe network to the site, mean; guess"`
	SnowLife       float64 `flag:"snowshoe-life" why:"hours for which a snowshoe network is in use, mean; guess"`
	StolenMails    float64 `flag:"stolen-mails" why:"messages of one stolen account or hacked site to the site, mean; guess"`
	BotNamed       float64 `flag:"bot-named" max:"1" why:"bots with a verified name that is not generic; guess"`
	BotNoName      float64 `flag:"bot-no-name" max:"1" why:"of the others, without a verified name; guess"`
	BotBadHelo     float64 `flag:"bot-bad-helo" max:"1" why:"bots with a bad HELO; guess"`
	BotSPF         float64 `flag:"bot-spf-pass" max:"1" why:"bots that write as a domain whose SPF passes; guess"`
	SameBody       float64 `flag:"same-body" max:"1" why:"bots' campaigns with one and the same text (rspamd knows a text again); guess"`
	HamSuspicious  float64 `flag:"rspamd-ham" max:"1" why:"legitimate mail whose text alone is worth 4 points to rspamd; outputs of rspamc stat in public show 0.8 to 10.6 % of all mail from 4 to 6 points"`
	SpamSuspicious float64 `flag:"rspamd-spam" max:"1" why:"spam whose text alone is; guess"`
}

func defaults() assumptions {
	return assumptions{
		Mailboxes: 100, PerDay: 15, Spam: 0.9,
		MixPeople: 0.30, MixNewsletters: 0.16, MixNotices: 0.50, MixCodes: 0.02, MixLists: 0.02,
		FromFreemail: 0.45, FromMicrosoft: 0.18, FromGoogle: 0.10, FromHoster: 0.14, FromOwn: 0.08, FromRented: 0.02, FromForward: 0.03,
		Domains: 1500, NewDomain: 0.05, NewPair: 0.15, NewList: 0.01, Services: 1000, NewService: 0.03, NewCode: 0.30, Zipf: 1, FollowUps: 2, Subscribers: 2,
		ViaESP: 0.7, ESPAligned: 0.6, ESPNets: 20, ESPPool: 8, ProviderNets: 40, VERP: 0.7, Rotate: 0.4, SPFOwn: 0.75, NoName: 0.05, BadHelo: 0.03, Unaligned: 0.4,
		LegitListed: 0.01, NoRetry: 0.01,
		SpamBots: 0.55, SpamRetry: 0.15, SpamSnowshoe: 0.15, SpamStolen: 0.08, SpamHacked: 0.07,
		BotListed: 0.8, BotLag: 40, BotEver: 0.9, SnowListed: 0.3, SnowLag: 180, SnowEver: 0.8, HackedLag: 720, HackedEver: 0.4, MinorListed: 0.4,
		HeadStart: 30, BotPatience: 30, SnowRetry: 0.6, SnowPatience: 60, BotMails: 2, SnowMails: 30, SnowLife: 24, StolenMails: 4,
		BotNamed: 0.05, BotNoName: 0.4, BotBadHelo: 0.6, BotSPF: 0.02, SameBody: 0.3, HamSuspicious: 0.02, SpamSuspicious: 0.7,
	}
}

// assumption is one field.
type assumption struct {
	name, why string
	most      float64 // 0: no bound; 1: a share
	value     *float64
}

// each lists the fields of a in their order.
func (a *assumptions) each() []assumption {
	v := reflect.ValueOf(a).Elem()
	out := make([]assumption, v.NumField())
	for i := range out {
		tag := v.Type().Field(i).Tag
		out[i] = assumption{name: tag.Get("flag"), why: tag.Get("why"), value: v.Field(i).Addr().Interface().(*float64)}
		if tag.Get("max") == "1" {
			out[i].most = 1
		}
	}
	return out
}

// scaled is what an assumption is when it is halved or doubled.
func (x *assumption) scaled(by float64) float64 {
	v := *x.value * by
	if x.most > 0 {
		v = math.Min(v, x.most)
	}
	return v
}

// register makes a flag of each.
func (a *assumptions) register(fs *flag.FlagSet) {
	for _, x := range a.each() {
		fs.Float64Var(x.value, x.name, *x.value, x.why)
	}
}

// check says what cannot be.
func (a *assumptions) check() error {
	for _, x := range a.each() {
		switch v := *x.value; {
		case v < 0 || math.IsNaN(v):
			return fmt.Errorf("-%s %v is less than nothing", x.name, v)
		case x.most > 0 && v > x.most:
			return fmt.Errorf("-%s %v is more than all", x.name, v)
		}
	}
	if a.Mailboxes < 1 || a.Domains < 1 || a.Services < 1 || a.ESPNets < 1 || a.ESPPool < 1 || a.ProviderNets < 1 {
		return fmt.Errorf("there must be at least one mailbox, domain, service and network")
	}
	return nil
}

// whole is a number of things, of which there is one at least.
func whole(x float64) int { return max(1, int(x)) }

func minutes(m float64) time.Duration { return time.Duration(m * float64(time.Minute)) }

// String lists the assumptions with their values and reasons.
func (a *assumptions) String() string {
	var b strings.Builder
	for _, x := range a.each() {
		fmt.Fprintf(&b, "  -%-22s %-7.6g %s\n", x.name, *x.value, x.why)
	}
	return b.String()
}
