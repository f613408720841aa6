package main

import (
	"strings"
	"testing"

	"recast/provision"
)

func TestApplySaysWhomItLeavesOut(t *testing.T) {
	out := provision.Entry{Machine: "r1u01", Kind: provision.EntryWrite, Blocked: "the machine is protected"}
	goes := provision.Entry{Machine: "r1u02", Kind: provision.EntryWrite, ImageBytes: 5}
	for _, c := range []struct {
		name      string
		entries   []provision.Entry
		want, not string
	}{
		{"all", []provision.Entry{out}, "nothing starts: every machine of the plan is left out (1): r1u01; why: recast explain r1u01", "--watch"},
		{"one of two", []provision.Entry{out, goes}, "\nLeft out (1): r1u01; why: recast explain r1u01", "nothing starts"},
		{"none", []provision.Entry{goes}, "--watch", "eft out"},
	} {
		if text := appliedText(provision.Plan{Entries: c.entries}); !strings.Contains(text, c.want) || strings.Contains(text, c.not) {
			t.Errorf("%s: %q", c.name, text)
		}
	}
	var b strings.Builder
	printPlan(&b, provision.Plan{Entries: []provision.Entry{out, goes}})
	if text := b.String(); !strings.HasPrefix(text, "x write ") || !strings.Contains(text, "\n! write ") {
		t.Errorf("the mark of a disk to be erased stands at one that is left out, or not where it must:\n%s", text)
	}
}
