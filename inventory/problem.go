package inventory

import (
	"fmt"
	"sort"
	"strings"
)

// Problem is one reason why declared files are refused: where, what, and what
// to do next. It prints as one line.
type Problem struct {
	File  string `json:"file"`
	Line  int    `json:"line,omitempty"`  // from 1; 0 unknown
	Field string `json:"field,omitempty"` // spec.nics[0].mac
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"`
}

// String is "file:line: field: text; next".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Text)
	if p.Next != "" {
		b.WriteString("; " + p.Next)
	}
	return b.String()
}

// Problems are all reasons at once, in the order of the files and their lines.
type Problems []Problem

// Error is one line per problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// sorted orders by file as the files were given, then by line.
func (p Problems) sorted(files []File) Problems {
	rank := make(map[string]int, len(files))
	for i, f := range files {
		if _, ok := rank[f.Name]; !ok {
			rank[f.Name] = i
		}
	}
	sort.SliceStable(p, func(i, j int) bool {
		if a, b := rank[p[i].File], rank[p[j].File]; a != b {
			return a < b
		}
		return p[i].Line < p[j].Line
	})
	return p
}

// didYouMean is the next step after an unknown name: the nearest known one, or
// all of them where none is near.
func didYouMean(name string, known []string) string {
	best, bestDistance := "", 1+max(2, len(name)/3)
	for _, k := range known {
		if d := editDistance(strings.ToLower(name), strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	switch {
	case len(known) == 0:
		return "remove it"
	case len(known) > 20:
		return fmt.Sprintf("none of the %d known names is near", len(known))
	}
	return "want one of " + strings.Join(known, ", ")
}

// editDistance counts insertions, deletions, substitutions and swaps of
// neighbours (optimal string alignment) between a and b.
func editDistance(a, b string) int {
	const longest = 64 // names are at most 63 bytes; longer ones are near nothing
	if len(a) > longest || len(b) > longest {
		return longest
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
