package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/testenv"
)

func newLabDown(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "End a lab and clear everything it left",
		Long: `End a lab: its machines, BMCs, server, namespace and folder. It also clears what a killed lab
left behind. What was built for it stays cached for 30 days after its last use.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("lab down needs root (run it with sudo)")
			}
			if _, err := os.Stat(f.dir()); errors.Is(err, os.ErrNotExist) {
				// Its folder goes last; a namespace may stand without it all the same.
				if err := testenv.RemoveRack(f.name); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Nothing to clear: %v.\n", f.none())
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if err := testenv.DownLab(ctx, f.dir(), f.name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Lab %q is gone.\n", f.name)
			return nil
		}}
}

func newLabStatus(f *labFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "status", Short: "Show a lab",
		Long: "Show whether a lab runs, where its server answers, and its machines. It fails where there is no lab,\nor one that is down.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, alive, err := testenv.ReadLab(f.dir())
			if errors.Is(err, os.ErrNotExist) {
				return f.none()
			}
			if err != nil {
				return err
			}
			said := struct {
				testenv.LabState
				Running bool `json:"running"`
			}{s, alive}
			err = show(cmd.OutOrStdout(), output, said, func(w io.Writer, _ bool) {
				runs := string(s.OS)
				if s.Image == "" {
					runs = "simulated"
				}
				if alive {
					fmt.Fprintf(w, "lab %s: running, %s, supervisor %d\nserver https://%s, context %s\nserver %s\n",
						s.Name, runs, s.PID, s.Operator, f.contextFile(), s.Server)
				} else {
					fmt.Fprintf(w, "lab %s: down, %s\n", s.Name, runs)
				}
				lines := [][]string{{"MACHINE", "KIND", "FIRMWARE", "BMC", "ADDRESS", "DISK"}}
				for _, m := range s.Machines {
					lines = append(lines, []string{m.Name, m.Kind, m.Firmware, m.BMC, m.IP, m.Disk})
				}
				rows(w, lines)
			})
			if err == nil && !alive {
				return codeError{f.down(), exitNoServer}
			}
			return err
		}}
	addOutput(cmd, &output)
	return cmd
}

// newLabSupervise is the process that owns a lab; lab up starts it.
func newLabSupervise(f *labFlags) *cobra.Command {
	var s testenv.LabSettings
	var dir, kind, digest string
	cmd := &cobra.Command{Use: "supervise", Hidden: true, Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if digest != "" {
				if s.Image, err = inventory.ParseDigest(digest); err != nil {
					return err
				}
			}
			if s.Recast, err = os.Executable(); err != nil {
				return err
			}
			s.Name, s.OS = f.name, testenv.OSKind(kind)
			return testenv.Supervise(cmd.Context(), dir, s, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}}
	cmd.Flags().StringVar(&dir, "dir", "", "the lab's folder")
	cmd.Flags().StringVar(&kind, "os", "", "operating system")
	cmd.Flags().StringVar(&digest, "image", "", "digest of the image")
	cmd.Flags().StringVar(&s.Source, "source", "", "file of the image")
	cmd.Flags().StringVar(&s.Ramdisk, "ramdisk", "", "folder of the ramdisk")
	return cmd
}
