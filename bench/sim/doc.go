// Command sim is a discrete-event simulation of a site that greylists: a month
// of mail, legitimate and not, against the real check (package greylist over
// store/mem), and against models of postgrey, sqlgrey and rspamd's greylist.
// `make sim` runs it.
//
// The world is made once from the assumptions and a seed, then the same
// attempts are shown to each filter. Nothing waits: policy.Request.Time is the
// only clock. Every assumption is a flag; `-sweep` halves and doubles each.
//
// Its figures are as good as its assumptions. They are for comparing filters in
// one and the same world, and for seeing which assumption a figure hangs on.
package main
