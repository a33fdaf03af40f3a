package main

import (
	"math"
	"time"
)

// schedule is when a sender tries again.
type schedule uint8

// The schedules, with their documented defaults. Those of webmail providers
// were measured by Pagani et al., "Measuring the Role of Greylisting and
// Nolisting in Fighting Spam", DSN 2016.
const (
	never schedule = iota
	postfixQueue
	eximQueue
	sendmailQueue
	exchangeQueue
	qmailQueue
	gmailQueue
	outlookQueue
	yahooQueue
	gmxQueue
	bulkQueue // PowerMTA: every ten minutes
	botQueue  // after five to ten minutes
	scheduleCount
)

var (
	gmailTries   = steps(6*60+2, 29*60+2, 56*60+36, 98*60+44, 162*60+3, 229*60+44, 309*60+5, 434*60+46)
	outlookTries = steps(61, 123, 184, 306, 487, 728, 970) // then every four minutes
	yahooTries   = steps(127, 339, 778, 27*60+16, 55*60+13, 109*60+35, 216*60+47, 430*60+36)
	gmxTries     = steps(301, 753, 23*60+50, 40*60+46, 66*60+9, 104*60+14, 161*60+22, 247*60+4, 375*60+36)
)

func steps(seconds ...int64) []time.Duration {
	out := make([]time.Duration, len(seconds))
	for i, s := range seconds {
		out[i] = time.Duration(s) * time.Second
	}
	return out
}

const day = 24 * time.Hour

// next returns how long after the first attempt the next one comes, when n
// have failed, the last of them after elapsed. It depends on its arguments
// only, so that a message behaves alike whatever filter it meets.
func (s schedule) next(seed uint64, n int, elapsed time.Duration) (at time.Duration, ok bool) {
	switch s {
	case postfixQueue: // minimal_backoff_time, maximal_backoff_time, queue_run_delay, maximal_queue_lifetime
		wait := min(max(elapsed, 300*time.Second), 4000*time.Second)
		return queueRun(elapsed+wait, 300*time.Second, seed), elapsed < 5*day
	case eximQueue: // F,2h,15m; G,16h,1h,1.5; F,4d,6h; Debian runs the queue each half hour
		wait := 15 * time.Minute
		if elapsed >= 16*time.Hour {
			wait = 6 * time.Hour
		} else if elapsed >= 2*time.Hour {
			wait = elapsed / 2 // the sum of 1h, 1.5h, ... grows like its last term
		}
		return queueRun(elapsed+wait, 30*time.Minute, seed), elapsed < 4*day
	case sendmailQueue: // -q1h, Timeout.queuereturn
		return queueRun(elapsed+time.Second, time.Hour, seed), elapsed < 5*day
	case exchangeQueue: // MessageRetryInterval, MessageExpirationTimeout
		return elapsed + 15*time.Minute, elapsed < 2*day
	case qmailQueue: // qmail-send: quadratic, chanskip 20 for remote ones, queuelifetime
		root := math.Sqrt(elapsed.Seconds()) + 20
		return time.Duration(root * root * float64(time.Second)), elapsed < 7*day
	case gmailQueue:
		return measured(gmailTries, 2*time.Hour, 0.2, seed, n, elapsed), elapsed < 2*day
	case outlookQueue:
		return measured(outlookTries, 4*time.Minute, 0.05, seed, n, elapsed), elapsed < day
	case yahooQueue:
		return measured(yahooTries, 4*time.Hour, 0.1, seed, n, elapsed), elapsed < 3*day
	case gmxQueue:
		return measured(gmxTries, 2*time.Hour, 0.05, seed, n, elapsed), elapsed < 3*day
	case bulkQueue:
		return elapsed + 10*time.Minute + jitter(seed, n, 30*time.Second), elapsed < day
	case botQueue:
		return elapsed + 5*time.Minute + jitter(seed, n, 5*time.Minute), true
	}
	return 0, false
}

// queueRun is the first run of a queue, every so often, not before at.
func queueRun(at, every time.Duration, seed uint64) time.Duration {
	phase := time.Duration(mix(seed, 77) % uint64(every))
	return phase + (at-phase+every-1)/every*every
}

// measured follows a list of tries, and then goes on in equal steps.
func measured(tries []time.Duration, then time.Duration, spread float64, seed uint64, n int, elapsed time.Duration) time.Duration {
	if n > len(tries) {
		return elapsed + then
	}
	factor := 1 + spread*(2*unit(mix(seed, uint64(n)))-1)
	return max(elapsed+30*time.Second, time.Duration(float64(tries[n-1])*factor))
}

func jitter(seed uint64, n int, most time.Duration) time.Duration {
	return time.Duration(unit(mix(seed, uint64(n))) * float64(most))
}

// mix is a hash of two numbers (splitmix64).
func mix(a, b uint64) uint64 {
	x := a + 0x9e3779b97f4a7c15*(b+1)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// unit is a hash as a number from 0 to 1.
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }
