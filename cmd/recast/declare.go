package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/provision"
	"recast/web"
)

// planFlags are shared by plan and apply.
type planFlags struct {
	erase  []string
	output string
}

func (f *planFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.erase, "erase", nil, "machines whose disk may be erased although recast has not written it before")
	addOutput(cmd, &f.output)
}

// check refuses an empty name: a script's unset variable must not look like a choice.
func (f *planFlags) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("erase") && (len(f.erase) == 0 || slices.Contains(f.erase, "")) {
		return codeError{errors.New("--erase: an empty name; name the machines whose disk may be erased, as --erase r1u05,r1u06"), exitUsage}
	}
	return nil
}

func newPlan() *cobra.Command {
	var f planFlags
	var exitCode bool
	cmd := &cobra.Command{
		Use: "plan PATH...", GroupID: "declare", Short: "Show what apply would do",
		Long: `Compare declared files with what is known of every machine, and show what apply
would do: which machines, from which generation to which, which disk by serial,
what it holds, how many bytes: where a disk holds another image, only what that
one lacks is fetched. Nothing changes.

PATH is a file, a folder of *.yaml, or - for standard input. Marks: ! writes a disk, ? looks
first, . touches none.`,
		Example: "  recast plan site/\n  recast plan --exit-code site/ || echo 'something is to do'",
		Args:    arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			p, err := askPlan(cmd, c, args, f.erase)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), f.output, p, func(w io.Writer, _ bool) { printPlan(w, p) }); err != nil {
				return err
			}
			if exitCode && !p.Empty() {
				return codeError{errors.New(""), exitChanges}
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, fmt.Sprintf("end with code %d when the plan is not empty", exitChanges))
	return cmd
}

func askPlan(cmd *cobra.Command, c *client, paths, erase []string) (provision.Plan, error) {
	var p provision.Plan
	files, err := readFiles(cmd, paths)
	if err != nil {
		return p, err
	}
	return p, c.call(cmd.Context(), http.MethodPost, "/api/v1/plan", web.PlanRequest{Files: files, Erase: erase}, &p)
}

func readFiles(cmd *cobra.Command, paths []string) ([]inventory.File, error) {
	var files []inventory.File
	for _, path := range paths {
		if path == "-" {
			f, err := inventory.ReadFrom("stdin", interruptible{cmd.Context(), cmd.InOrStdin()})
			if err != nil {
				return nil, err
			}
			files = append(files, f)
			continue
		}
		more, err := untilDone(cmd.Context(), func() ([]inventory.File, error) { return inventory.ReadFiles(path) })
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

func newApply() *cobra.Command {
	var f planFlags
	var digest string
	var yes bool
	cmd := &cobra.Command{
		Use: "apply PATH... | apply --plan DIGEST", GroupID: "declare", Short: "Make files, or a plan, the truth",
		Long: `Make declared files the truth and let their machines start in their waves.

On a terminal the plan is shown and confirmed. Elsewhere name the plan that was
looked at with --plan, or say --yes. A plan whose inputs have moved since is refused.`,
		Example: "  recast apply site/\n  recast apply --plan sha256:1f0c…\n  recast apply site/ --erase r1u05 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			var p provision.Plan
			switch {
			case digest != "" && len(args) == 0:
				if p.Digest, err = inventory.ParseDigest(digest); err != nil {
					return codeError{err, exitUsage}
				}
			case digest == "" && len(args) > 0:
				if p, err = askPlan(cmd, c, args, f.erase); err != nil {
					return err
				}
				if err := show(cmd.OutOrStdout(), f.output, p, func(w io.Writer, _ bool) { printPlan(w, p) }); err != nil {
					return err
				}
				if p.Empty() {
					return nil
				}
				if !yes {
					if err := confirm(cmd, "Apply this plan?", p.Digest); err != nil {
						return err
					}
				}
			default:
				return codeError{errors.New("want files, or --plan DIGEST; see: recast apply --help"), exitUsage}
			}
			return apply(cmd, c, p.Digest)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&digest, "plan", "", "apply the plan of this digest, which recast plan printed")
	cmd.Flags().BoolVar(&yes, "yes", false, "apply without asking")
	return cmd
}

func apply(cmd *cobra.Command, c *client, digest inventory.Digest) error {
	var done provision.Plan
	if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/apply", web.ApplyRequest{Plan: digest}, &done); err != nil {
		return err
	}
	// Standard error, so that the output of -o json stays JSON.
	fmt.Fprint(cmd.ErrOrStderr(), appliedText(done))
	return nil
}

// appliedText says what an apply begins, and whom it leaves out.
func appliedText(p provision.Plan) string {
	var left []string
	starts := false
	for _, e := range p.Entries {
		if e.Blocked != "" {
			left = append(left, e.Machine)
		} else {
			starts = true
		}
	}
	if len(left) == 0 {
		return fmt.Sprintf("Applied %s. Watch it: recast get machines --watch\n", p.Digest.Short())
	}
	const few = 5
	names := strings.Join(left[:min(few, len(left))], " ")
	if len(left) > few {
		names += " …"
	}
	out := fmt.Sprintf("left out (%d): %s; why: recast explain %s\n", len(left), names, left[0])
	if !starts {
		return fmt.Sprintf("Applied %s, but nothing starts: every machine of the plan is %s", p.Digest.Short(), out)
	}
	return fmt.Sprintf("Applied %s. Watch it: recast get machines --watch\n%s", p.Digest.Short(), strings.ToUpper(out[:1])+out[1:])
}

// confirm asks on a terminal; elsewhere it says how to answer beforehand.
func confirm(cmd *cobra.Command, question string, digest inventory.Digest) error {
	ok, err := askYes(cmd, question)
	if err != nil && !errors.Is(err, errNobody) {
		return errors.New("interrupted: nothing was applied")
	}
	if err != nil {
		return codeError{fmt.Errorf("%w: repeat with --yes, or apply what you saw: recast apply --plan %s", err, digest), exitUsage}
	}
	if !ok {
		return errors.New("not applied")
	}
	return nil
}

var errNobody = errors.New("nobody is there to ask")

// askYes asks on a terminal; without one the error is errNobody.
func askYes(cmd *cobra.Command, question string) (bool, error) {
	answer, err := askLine(cmd, question+" Only \"yes\" is a yes: ")
	return answer == "yes", err
}

// askLine reads one line on a terminal, "" where it ends; without a terminal the
// error is errNobody.
func askLine(cmd *cobra.Command, prompt string) (string, error) {
	in := cmd.InOrStdin()
	if !onTerminal(in) {
		return "", errNobody
	}
	fmt.Fprint(cmd.OutOrStdout(), prompt)
	// Byte by byte: what follows the answer belongs to the next question.
	var answer []byte
	b := make([]byte, 1)
	for {
		n, err := interruptible{cmd.Context(), in}.Read(b)
		switch {
		case errors.Is(err, context.Canceled):
			fmt.Fprintln(cmd.OutOrStdout())
			return "", err
		case n == 1 && b[0] != '\n':
			answer = append(answer, b[0])
		case err != nil:
			return "", nil // it ended in the middle: no answer
		default:
			return strings.TrimSpace(string(answer)), nil
		}
	}
}

func newRollback() *cobra.Command {
	var to string
	var yes bool
	cmd := &cobra.Command{
		Use: "rollback GROUP", GroupID: "declare", Short: "Bring a group back to a kept generation",
		Long: `Bring a group back to the generation before, or to the one named with --to.
recast get generations lists those that are kept. The files on disk are not
changed: the next apply of them brings their definition back.`,
		Example: "  recast rollback rack1-compute\n  recast rollback rack1-compute --to 1f0c29",
		Args:    arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			req := web.RollbackRequest{Group: args[0]}
			if to != "" {
				if req.To, err = c.resolve(cmd.Context(), "generation", "/api/v1/generations", to, "recast get generations lists those that are kept"); err != nil {
					return err
				}
			}
			var p provision.Plan
			if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/rollback", req, &p); err != nil {
				return err
			}
			printPlan(cmd.OutOrStdout(), p)
			if p.Empty() {
				return nil
			}
			if !yes {
				if err := confirm(cmd, "Roll back?", p.Digest); err != nil {
					return err
				}
			}
			return apply(cmd, c, p.Digest)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "generation, or the first digits of one")
	cmd.Flags().BoolVar(&yes, "yes", false, "roll back without asking")
	return cmd
}

func printPlan(w io.Writer, p provision.Plan) {
	if p.Empty() {
		fmt.Fprintln(w, "Nothing to do: every machine is what it is declared to be.")
		return
	}
	for _, c := range p.Changes {
		fmt.Fprintf(w, "~ %s\n", c)
	}
	if len(p.Changes) > 0 {
		fmt.Fprintln(w)
	}
	for _, e := range p.Entries {
		mark := map[provision.EntryKind]string{provision.EntryWrite: "!", provision.EntryInspect: "?"}[e.Kind]
		switch {
		case e.Blocked != "":
			mark = "x"
		case mark == "":
			mark = "."
		}
		fmt.Fprintf(w, "%s %-8s %s  %s → %s  (%s)\n", mark, e.Kind, e.Machine, shortOr(e.From, "nothing"), e.To.Short(), e.Why)
		if e.Disk != "" {
			holds := ""
			if e.Holds != "" {
				holds = ", holds " + e.Holds
			}
			fmt.Fprintf(w, "      disk     %s%s\n", strings.TrimPrefix(e.Disk, "disk "), holds)
		}
		if e.ImageBytes > 0 {
			cycles := strconv.Itoa(e.PowerCycles)
			if e.PowerCycles == 0 {
				cycles = "by a person: it has no BMC" // and once written, its disk comes before the network
			}
			fmt.Fprintf(w, "      bytes    %s; power cycles: %s\n", movesText(e), cycles)
		}
		if e.Blocked != "" {
			fmt.Fprintf(w, "      left out %s\n", e.Blocked)
		}
		if e.Waits != "" {
			fmt.Fprintf(w, "      waits    %s\n", e.Waits)
		}
	}
	fmt.Fprintf(w, "\nPlan %s\n", p.Digest)
}

// movesText says what an entry fetches and writes: less than all of the image
// where its disk holds another one.
func movesText(e provision.Entry) string {
	text := fmt.Sprintf("fetch %s, write %s", size(e.FetchBytes), size(e.WriteBytes))
	switch {
	case e.Whole != "":
		text += " (all of the image: " + e.Whole + ")"
	case e.FromImage != "":
		text = fmt.Sprintf("fetch %s of %s, write %s, and what has changed on the disk since",
			size(e.FetchBytes), size(e.ImageBytes), size(e.WriteBytes))
	}
	return text
}

func shortOr(d inventory.Digest, none string) string {
	if d == "" {
		return none
	}
	return d.Short()
}

func size(n int64) string { return inventory.SizeText(n) }
