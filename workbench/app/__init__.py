"""`workbench app`: a local page to trace, edit and read in; what computes stands in `bench`, without Gradio."""
