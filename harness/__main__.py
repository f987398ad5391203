"""``python -m harness`` is ``pacbench``, and so is the console script."""

from harness.start import end_when_asked, forget_current_folder

forget_current_folder()  # before anything else is imported: it may lie there under any name
end_when_asked()

from harness.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
