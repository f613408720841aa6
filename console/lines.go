package console

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// lineMost is how much of a line is quoted.
const lineMost = 160

var (
	// escapes of a terminal (ECMA-48): control sequences, and the two-byte ones.
	escapes = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*\x07?|[ -/]*[0-~])`)
	// marks are ours.
	marks = regexp.MustCompile(`^\[\d{4}-\d\d-\d\dT[0-9:]+Z recast: .*\]$`)
)

// Lines are the last n lines of what a machine said, as plain text: fit to be quoted.
func Lines(text []byte, n int) (last []string) {
	plain := escapes.ReplaceAllString(string(text), "")
	for _, l := range slices.Backward(strings.FieldsFunc(plain, func(r rune) bool { return r == '\r' || r == '\n' })) {
		l = strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == utf8.RuneError {
				return -1
			}
			return r
		}, l))
		if l == "" || marks.MatchString(l) {
			continue
		}
		if len(l) > lineMost {
			l = strings.ToValidUTF8(l[:lineMost], "") + "…"
		}
		if last = append(last, l); len(last) == n {
			break
		}
	}
	slices.Reverse(last)
	return last
}
