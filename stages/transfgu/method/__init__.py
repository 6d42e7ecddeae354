"""The paper's method as plain torch: no pipeline, no tracking; each file is one idea and reads on its own."""
