//go:build race

package greylist_test

const race = true
